"""Bugs of queues that live in Redis, with real workers; docs/explanation/delivery.md tells what each was."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from redis import Redis

import devstack
from streams.agents.scheduled import ScheduleTick
from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL, RETRY_DELAYS, SCHEDULED
from streams.retry import GROUP as FORWARDER
from tests.handlers import Block, Work
from tests.processes import Pipeline, wait_until
from tests.upstream import ended, starts, wait_for_members

pytestmark = pytest.mark.stack


def settled(pipeline: Pipeline, *groups: str) -> Counter[str]:
    """Return how many records of each topic the positions of some groups cover."""
    count = Counter[str]()
    for group in groups:
        for (topic, _), offset in pipeline.committed(group).items():
            count[topic] += max(offset, 0)
    return count


def is_quiet(pipeline: Pipeline) -> bool:
    """Tell whether nothing waits: each record of `critical` and of the retry topics is settled."""
    written = {topic: len(pipeline.records(topic)) for topic in (CRITICAL.topic, *RETRY_DELAYS)}
    covered = settled(pipeline, "streams-primary", FORWARDER)
    return all(covered[topic] == count for topic, count in written.items())


def test_neither_long_nor_delayed_work_is_given_to_a_second_worker(pipeline: Pipeline) -> None:
    """kombu #337: what was not acknowledged within a timeout was delivered again, to run twice.

    Here both take more than two leases, and copies of the long one ask all the while whether they may run.
    """
    workers = [pipeline.worker().start(), pipeline.worker().start()]
    wait_for_members(pipeline, 2)
    with SyncJobs(pipeline.settings) as jobs:
        long = jobs.publish_many([Publication(Work(work_ms=9000), "acme", idempotency_key="invoice-7")] * 3)
        asked_at = datetime.now(UTC)
        delayed = jobs.publish(Work(), organization_id="acme", delay=timedelta(seconds=7))
    assert len(set(long)) == 1
    pipeline.wait_for("completed", 2, 30)
    wait_until(lambda: is_quiet(pipeline), 20, "every copy has been answered")
    assert starts(pipeline) == {long[0]: 1, delayed: 1}
    (begun,) = [one.at for one in pipeline.executions() if (one.what, one.job_id) == ("start", delayed)]
    assert begun >= (asked_at + timedelta(seconds=7)).timestamp()
    assert [worker.process.poll() for worker in workers] == [None, None]


def test_jobs_go_on_after_every_kind_of_redis_reconnect(pipeline: Pipeline, stack: devstack.Stack) -> None:
    """celery #10205: after its connection was reset a worker lived on, told nobody, and took nothing more."""
    worker = pipeline.worker().start()
    wanted: set[str] = set()
    with SyncJobs(pipeline.settings) as jobs, Redis.from_url(pipeline.settings.redis) as redis:

        def publish() -> None:
            works = [Publication(Block(work_ms=20), f"org-{n}") for n in range(6)]
            wanted.update(jobs.publish_many(works))

        def all_run() -> None:
            wait_until(lambda: ended(pipeline) == wanted, 20, "all jobs have ended")

        publish()
        all_run()
        for _ in range(5):
            assert redis.client_kill_filter(_type="normal") >= 1, "the worker's connection is cut while idle"
            publish()
            redis.client_kill_filter(_type="normal")  # and perhaps while it is asked
            all_run()
        stack.service("redis").stop()
        try:
            publish()
            wait_until(
                lambda: "webhooks waits for Redis" in worker.said(), 20, "the worker says that it waits"
            )
        finally:
            stack.service("redis").start()
        all_run()
        publish()
        all_run()
    assert worker.process.poll() is None
    assert starts(pipeline) == dict.fromkeys(wanted, 1)
    assert worker.terminate() == 0


def test_slots_that_many_publish_at_once_run_once_and_none_ends_the_schedule(pipeline: Pipeline) -> None:
    """bullmq #3272: instances that set up one schedule at once left it without its next job, for good.

    Here no slot depends on the one before it: each is a job whose id is made of the schedule and the slot.
    """

    def slot(number: int) -> str:
        at = datetime(2026, 1, 1, number, tzinfo=UTC)
        tick = ScheduleTick(schedule="nightly", slot=at, job_type="test.work", payload_json="{}")
        job_id = f"nightly@{at:%Y-%m-%dT%H.%M}"
        with SyncJobs(pipeline.settings) as jobs, ThreadPoolExecutor(4) as instances:
            for _ in range(4):
                instances.submit(jobs.publish, tick, organization_id="acme", job_id=job_id)
        return job_id

    worker = pipeline.worker("scheduled").start()
    wanted = [slot(1)]
    pipeline.wait_for("completed", 1)
    worker.kill()
    wanted.append(slot(2))
    pipeline.worker("scheduled").start()
    wanted.append(slot(3))
    pipeline.wait_for("completed", 3)
    wait_until(lambda: settled(pipeline, "streams-scheduled")[SCHEDULED.topic] == 12, 20, "all are answered")
    assert sorted(event["jobId"] for event in pipeline.events() if event["kind"] == "completed") == wanted
    queued = [record.headers["ce_id"] for record in pipeline.records(CRITICAL.topic)]
    assert len(set(queued)) == len(queued) == 3, "each slot queued its job"
