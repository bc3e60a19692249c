"""What `streams.transport` makes of Faust, on the real broker; stock Faust 0.15.3 loses jobs in the first four."""

import time
from collections import Counter

import pytest
from redis import Redis

from streams.client import SyncJobs
from streams.offset_map import settled_beyond
from streams.publication import Publication
from streams.queues import CRITICAL
from streams.runs import WATCHED_FROM
from tests.chaos.commits import commits_of
from tests.handlers import Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack

ORGANIZATION = "acme"
"""All jobs of one organization share a partition."""


def publish(pipeline: Pipeline, *payloads: Work) -> list[str]:
    with SyncJobs(pipeline.settings) as jobs:
        return jobs.publish_many([Publication(payload, ORGANIZATION) for payload in payloads])


def position(pipeline: Pipeline) -> int:
    """Return the committed position of the partition; 0 before the first commit."""
    committed = pipeline.committed().items()
    return max((offset for (topic, _), offset in committed if topic == CRITICAL.topic), default=0)


def test_a_slow_job_holds_the_position_while_later_ones_complete(pipeline: Pipeline) -> None:
    slow, *quick = publish(pipeline, Work(work_ms=6000), *[Work(work_ms=1)] * (WATCHED_FROM - 1))
    pipeline.worker().start()
    pipeline.wait_for("completed", len(quick))
    assert slow not in {event["jobId"] for event in pipeline.events() if event["kind"] == "completed"}
    assert position(pipeline) <= 0, "the first record is still worked on"
    pipeline.wait_for("completed", WATCHED_FROM)
    wait_until(lambda: position(pipeline) == WATCHED_FROM, 10, "all positions are committed")


def test_a_slow_job_that_holds_many_back_is_passed_and_still_not_lost_to_a_kill(pipeline: Pipeline) -> None:
    slow, *quick = publish(pipeline, Work(work_ms=15_000), *[Work(work_ms=1)] * 100)
    worker = pipeline.worker().start()
    pipeline.wait_for("completed", len(quick))
    wait_until(lambda: position(pipeline) == 101, 5, "the position has passed the job that runs")
    worker.kill()
    killed_at = time.time()
    worker.start()
    pipeline.wait_for("completed", 101)
    first, second = [one for one in pipeline.executions() if (one.job_id, one.what) == (slow, "start")]
    assert first.at < killed_at < second.at
    assert second.attempt == 1, "a crash is no attempt"
    (end,) = [one for one in pipeline.events() if (one["jobId"], one["kind"]) == (slow, "completed")]
    assert end["attempt"] == 1


def test_what_has_ended_behind_a_running_job_is_known_after_a_kill_even_without_the_ledger(
    pipeline: Pipeline,
) -> None:
    slow, *quick = publish(pipeline, Work(work_ms=6000), *[Work(work_ms=1)] * (WATCHED_FROM - 1))
    worker = pipeline.worker().start()
    pipeline.wait_for("completed", len(quick))

    def known() -> bool:
        commits = commits_of("streams-primary", pipeline.settings.kafka).places.values()
        return any(settled_beyond(0, one[-1].metadata) == {*range(1, WATCHED_FROM)} for one in commits)

    wait_until(known, 10, "the last commit says what is settled")
    assert position(pipeline) <= 0
    worker.kill()
    with Redis.from_url(pipeline.settings.redis) as redis:
        redis.flushdb()
    worker.start()
    pipeline.wait_for("completed", WATCHED_FROM)
    starts = Counter(one.job_id for one in pipeline.executions() if one.what == "start")
    assert starts == Counter({slow: 2}) + Counter(quick)


def test_a_long_job_is_told_as_started_and_a_short_one_only_at_its_end(pipeline: Pipeline) -> None:
    slow, quick = publish(pipeline, Work(work_ms=1500), Work(work_ms=1))
    pipeline.worker().start()
    pipeline.wait_for("completed", 2)
    told = {
        job: [event["kind"] for event in pipeline.events() if event["jobId"] == job] for job in (slow, quick)
    }
    assert told == {slow: ["queued", "started", "completed"], quick: ["queued", "completed"]}


def test_bytes_that_are_no_avro_are_buried_unchanged_and_the_partition_goes_on(pipeline: Pipeline) -> None:
    publish(pipeline, Work())
    garbage = b"\xff\x00no avro at all" * 50
    pipeline.produce(CRITICAL.topic, ORGANIZATION.encode(), garbage, {"ce_id": b"x"})
    publish(pipeline, Work())
    pipeline.worker().start()
    pipeline.wait_for("completed", 2)
    wait_until(lambda: position(pipeline) == 3, 10, "the position is beyond the garbage")
    (letter,) = pipeline.records(CRITICAL.dead_letter_topic)
    assert (letter.key, letter.value) == (ORGANIZATION.encode(), garbage)
    assert letter.headers["ce_id"] == b"x"
    assert letter.headers["reason"] == b"invalid record"
    assert letter.headers["error-kind"] == b"NotAvro"


def test_a_handler_that_raises_is_retried_and_then_dead_and_never_just_gone(pipeline: Pipeline) -> None:
    recovers, bug = publish(
        pipeline, Work(fail_attempts=2, how="bug"), Work(fail_attempts=99, how="bug", password="canary-9d1f")
    )
    worker = pipeline.worker().start()
    pipeline.wait_for("completed", 1)
    pipeline.wait_for("dead", 1)
    attempts = {job: [one.attempt for one in pipeline.executions() if one.job_id == job and one.what == "start"]
                for job in (recovers, bug)}  # fmt: skip
    assert attempts == {recovers: [1, 2, 3], bug: [1, 2, 3]}
    (letter,) = pipeline.records(CRITICAL.dead_letter_topic)
    first = next(one for one in pipeline.records(CRITICAL.topic) if one.headers["ce_id"] == bug.encode())
    assert (letter.value, letter.key) == (first.value, first.key)
    assert letter.headers["attempt"] == b"3"
    assert letter.headers["error-kind"] == b"KeyError"
    assert letter.headers["origin"] == first.place.encode()
    assert worker.terminate() == 0
    assert "canary-9d1f" not in worker.said()
    assert not any("canary-9d1f" in str(event) for event in pipeline.events())


def test_sigterm_lets_running_jobs_end_and_leaves_the_rest_for_the_next_worker(pipeline: Pipeline) -> None:
    job_ids = publish(pipeline, *[Work(work_ms=1500)] * 15)
    worker = pipeline.worker().start()
    wait_until(lambda: len(pipeline.executions()) >= CRITICAL.concurrency, 30, "ten jobs run")
    began = time.monotonic()
    assert worker.terminate() == 0
    assert time.monotonic() - began < 10
    ended = [one for one in pipeline.executions() if one.what == "end"]
    assert len(ended) == CRITICAL.concurrency, "what ran has ended, and nothing more was begun"
    assert position(pipeline) == len(ended)
    pipeline.worker().start()
    pipeline.wait_for("completed", 15)
    starts = sorted(one.job_id for one in pipeline.executions() if one.what == "start")
    assert starts == sorted(job_ids), "each ran once"


def test_a_job_that_outlasts_the_grace_is_handed_on_at_once(pipeline: Pipeline) -> None:
    publish(pipeline, Work(work_ms=8000))
    worker = pipeline.worker(SHUTDOWN_GRACE="500ms", LEASE="60s").start()
    wait_until(lambda: len(pipeline.executions()) == 1, 30, "the job runs")
    began = time.monotonic()
    assert worker.terminate() == 0
    assert time.monotonic() - began < 6
    pipeline.worker(LEASE="60s").start()
    # The lease of the first worker would have lasted a minute: it was given back.
    wait_until(lambda: len(pipeline.executions()) >= 2, 30, "the job runs again")
    pipeline.wait_for("completed", 1)
    assert [one.attempt for one in pipeline.executions() if one.what == "start"] == [1, 1]


def test_workers_that_join_and_leave_repeat_nothing(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        job_ids = jobs.publish_many([Publication(Work(work_ms=40), f"org-{n % 9}") for n in range(3000)])
    first, second = pipeline.worker().start(), pipeline.worker()
    wait_until(lambda: len(pipeline.effects()) > 200, 30, "the first worker runs jobs")
    second.start()
    wait_until(lambda: len({one.pid for one in pipeline.executions()}) == 2, 40, "both run jobs")
    assert first.terminate() == 0
    pipeline.wait_for("completed", 3000)
    starts = sorted(one.job_id for one in pipeline.executions() if one.what == "start")
    assert starts == sorted(job_ids)
