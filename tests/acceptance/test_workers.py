"""Workers as an operator types them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from devstack.process import free_port
from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import DOCUMENTS, WORKER_TYPES, WorkerType, queues_of
from tests.handlers import Block, Compute, Work
from tests.processes import ROOT, Pipeline, wait_until

pytestmark = pytest.mark.stack


def test_all_four_start_at_once_with_no_further_option_and_leave_with_exit_code_0(pipeline: Pipeline) -> None:
    pipeline.environment.pop("HEALTH_PORT")
    ports = {worker_type: free_port() for worker_type in WORKER_TYPES}
    workers = {
        worker_type: pipeline.worker(worker_type, HEALTH_PORT=str(ports[worker_type])).start()
        for worker_type in WORKER_TYPES
    }

    def healthy(worker_type: WorkerType) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{ports[worker_type]}/health", timeout=2) as answer:
                state = json.load(answer)
        except OSError:
            return False
        return bool(
            state["status"] == "ok" and set(state["queues"]) == {q.name for q in queues_of(worker_type)}
        )

    for worker_type in WORKER_TYPES:
        wait_until(lambda: healthy(worker_type), 40, f"{worker_type} is healthy")  # noqa: B023
    for worker in workers.values():
        worker.process.terminate()
    assert [worker.wait(40) for worker in workers.values()] == [0, 0, 0, 0]


def test_the_type_may_come_from_the_environment(pipeline: Pipeline) -> None:
    command = [str(Path(sys.executable).parent / "streams"), "worker"]
    environment = {**os.environ, **pipeline.environment, "WORKER_TYPE": "nonsense"}
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 1
    assert "WORKER_TYPE must be one of primary, document, ai, scheduled, got 'nonsense'" in ended.stderr
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="acme")
    environment["WORKER_TYPE"] = "primary"
    with (pipeline.folder / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        pipeline.wait_for("completed", 1)
    finally:
        worker.terminate()
        assert worker.wait(40) == 0


def test_a_job_that_ends_or_outlasts_its_process_is_dead_and_the_others_are_unharmed(
    pipeline: Pipeline,
) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        crashes, endless, *fine = jobs.publish_many(
            [
                Publication(Compute(exit_code=9), "acme"),
                Publication(Compute(work_ms=60_000), "acme"),
                *[Publication(Compute(work_ms=10), "acme")] * 6,
            ]
        )
    worker = pipeline.worker("document", PROCESS_COUNT="2").start()
    pipeline.wait_for("completed", 6, 90)
    pipeline.wait_for("dead", 2, 90)
    dead = {event["jobId"]: event["error"] for event in pipeline.events() if event["kind"] == "dead"}
    assert set(dead) == {crashes, endless}
    assert dead[crashes]["message"] == "the handler's process ended with exit code 9"
    assert dead[endless]["message"] == "test.compute did not end within 3 s"
    assert {f"acme-{job_id}" for job_id in fine} == pipeline.effects()
    assert len(pipeline.records(DOCUMENTS.dead_letter_topic)) == 2
    done = [event for event in pipeline.events() if event["kind"] == "completed"]
    assert all(event["memoryBytes"] > 1_000_000 and event["cpuTimeMs"] is not None for event in done)
    assert worker.terminate() == 0


def test_a_thread_that_outlasts_its_timeout_is_left_and_its_slot_freed(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish_many([Publication(Block(work_ms=1500), "acme"), Publication(Block(work_ms=1), "acme")])
    worker = pipeline.worker(CONCURRENCY_WEBHOOKS="1").start()
    pipeline.wait_for("completed", 1)
    pipeline.wait_for("dead", 1)
    (dead,) = [event for event in pipeline.events() if event["kind"] == "dead"]
    assert dead["error"]["message"] == "test.block did not end within 0.3 s"
    assert worker.terminate() == 0
