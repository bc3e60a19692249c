"""A worker that leaves has left its group, whatever that is waiting for: nobody waits for its session to run out."""

import signal

import pytest

from streams.client import SyncJobs
from streams.publication import Publication
from tests.handlers import Work
from tests.processes import Pipeline, Worker, wait_until
from tests.upstream import wait_for_members

pytestmark = pytest.mark.stack

SESSION = {"KAFKA_SESSION_TIMEOUT": "30s"}


def publish(pipeline: Pipeline, *payloads: Work) -> list[str]:
    """Publish jobs of as many organizations, so that some are on each partition."""
    with SyncJobs(pipeline.settings) as jobs:
        return jobs.publish_many([Publication(one, f"org-{n}") for n, one in enumerate(payloads)])


def ended(pipeline: Pipeline) -> set[str]:
    return {event["jobId"] for event in pipeline.events() if event["kind"] == "completed"}


def rebalances(worker: Worker) -> int:
    """Return how many heartbeats were answered with a call to join again."""
    return worker.said().count("because it is rebalancing")


def test_one_that_leaves_while_others_are_waited_for_is_not_waited_for_as_well(pipeline: Pipeline) -> None:
    publish(pipeline, Work(work_ms=1))
    leaving = pipeline.worker(**SESSION).start()
    pipeline.wait_for("completed", 1)
    frozen = pipeline.worker(**SESSION).start()
    wait_for_members(pipeline, 2)
    before = rebalances(leaving)
    frozen.process.send_signal(signal.SIGSTOP)
    joining = pipeline.worker(**SESSION).start()
    wait_until(lambda: rebalances(leaving) > before, 30, "it joins again, and waits for the frozen one")
    publish(pipeline, Work(work_ms=1))
    assert leaving.terminate(10) == 0
    assert pipeline.listed() == 2, "it has left"
    frozen.process.send_signal(signal.SIGCONT)
    # Sooner than its session would have run out.
    pipeline.wait_for("completed", 2, within_seconds=12)
    assert joining.process.poll() is None


def test_one_that_ends_its_last_job_gets_nothing_more_to_read(pipeline: Pipeline) -> None:
    (slow,) = publish(pipeline, Work(work_ms=15_000))
    leaving = pipeline.worker(**SESSION, SHUTDOWN_GRACE="25s", REVOKE_GRACE="500ms").start()
    wait_until(lambda: len(pipeline.executions()) == 1, 30, "the job runs")
    leaving.process.send_signal(signal.SIGTERM)
    pipeline.worker(**SESSION).start()
    quick = publish(pipeline, *[Work(work_ms=1)] * 20)
    pipeline.wait_for("completed", len(quick), within_seconds=25)
    assert ended(pipeline) == set(quick), "whoever joined has all partitions, and the job still runs"
    assert leaving.wait(30) == 0
    pipeline.wait_for("completed", 1 + len(quick))
    assert [one.job_id for one in pipeline.executions() if one.what == "start"].count(slow) == 1
