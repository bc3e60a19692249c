"""A worker that is killed again and again loses no job, has no effect twice, and commits nothing too early."""

import threading
import time
from collections import Counter

import pytest
from confluent_kafka import KafkaException

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack

JOBS = 2_000
KILLS = 3


class Positions(threading.Thread):
    """Samples the committed positions all the time."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(daemon=True)
        self._pipeline = pipeline
        self._enough = threading.Event()
        self.failed: KafkaException | None = None
        self.samples: list[tuple[float, dict[tuple[str, int], int]]] = []

    def run(self) -> None:
        while not self._enough.wait(0.1):
            try:
                committed = self._pipeline.committed()
            except KafkaException as error:  # before the first worker there is no group
                self.failed = error
                continue
            self.samples.append((time.time(), committed))

    def finish(self) -> None:
        self._enough.set()
        self.join()


def test_kill_nine_loses_nothing_and_repeats_only_what_was_in_flight(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        wanted = [Publication(Work(number=n, work_ms=20), f"org-{n % 5}") for n in range(JOBS)]
        job_ids = jobs.publish_many(wanted)
    worker = pipeline.worker()
    positions = Positions(pipeline)
    positions.start()
    kills: list[float] = []
    for _ in range(KILLS):
        ended = len(pipeline.effects())
        worker.start()
        wait_until(lambda: len(pipeline.effects()) > ended + 300, 40, "300 more jobs ended")  # noqa: B023
        worker.kill()
        kills.append(time.time())
    worker.start()
    pipeline.wait_for("completed", JOBS)
    assert worker.terminate() == 0
    positions.finish()

    assert {f"org-{n % 5}-{job_id}" for n, job_id in enumerate(job_ids)} == pipeline.effects()
    _assert_extra_executions_are_explained(pipeline, kills)
    _assert_no_position_was_early(pipeline, positions)
    end = {
        partition: offset
        for partition, offset in pipeline.committed().items()
        if partition[0] == CRITICAL.topic
    }
    assert sum(end.values()) == JOBS


def _assert_extra_executions_are_explained(pipeline: Pipeline, kills: list[float]) -> None:
    starts = Counter[str]()
    started: dict[str, float] = {}
    ended: dict[str, float] = {}
    extra = 0
    for one in pipeline.executions():
        if one.what == "start":
            starts[one.job_id] += 1
            if starts[one.job_id] > 1:
                extra += 1
                at_kills = [at for at in kills if started[one.job_id] < at < one.at]
                assert at_kills, "it was in flight at a kill"
                assert at_kills[0] - ended.get(one.job_id, at_kills[0]) < 1, "it had not ended long before"
            started[one.job_id] = one.at
        elif one.what == "end":
            ended[one.job_id] = one.at
    assert len(starts) == JOBS
    # Ten run at once; those that ended during the last flush are not settled either.
    assert extra <= len(kills) * 10 * CRITICAL.concurrency


def _assert_no_position_was_early(pipeline: Pipeline, positions: Positions) -> None:
    settled: dict[tuple[str, int], dict[int, float]] = {}
    for event in pipeline.events():
        if event["kind"] == "completed":
            topic, partition, offset = event["origin"].split("/")
            at = event["at"].timestamp()
            times = settled.setdefault((topic, int(partition)), {})
            times[int(offset)] = min(at, times.get(int(offset), at))
    assert len(positions.samples) > 20, positions.failed
    assert sum(map(len, settled.values())) == JOBS
    for at, committed in positions.samples:
        for partition, position in committed.items():
            for offset in range(position):
                assert settled[partition][offset] <= at, f"{partition} was committed to {position} too early"
