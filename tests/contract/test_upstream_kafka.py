"""Bugs of other consumers of Kafka, with real workers; docs/explanation/delivery.md tells what each was."""

from collections.abc import Sequence

import pytest

import devstack
from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import DOCUMENTS
from tests.handlers import Compute, Work
from tests.processes import Pipeline, wait_until
from tests.upstream import ended, ends, members, positions, starts, wait_for_members

pytestmark = pytest.mark.stack

EACH_PARTITION = ("org-0", "org-2", "org-4", "org-1")
"""Organizations whose keys lie on partitions 0 to 3."""


def publish(pipeline: Pipeline, wanted: Sequence[Publication]) -> list[str]:
    with SyncJobs(pipeline.settings) as jobs:
        return jobs.publish_many(wanted)


@pytest.mark.parametrize("later", [20, 400], ids=["held back", "watched"])
def test_a_job_in_flight_at_a_kill_is_run_again_though_later_ones_have_ended(
    pipeline: Pipeline, later: int
) -> None:
    """faust #606 and robinhood/faust #682: the position went past the slow one, and a kill lost it.

    Where it holds many back, the position does go past it here: its copy waits in a retry topic by then.
    """
    wanted = [Publication(Work(work_ms=5000), "acme"), *[Publication(Work(work_ms=1), "acme")] * later]
    slow, *quick = publish(pipeline, wanted)
    worker = pipeline.worker().start()
    pipeline.wait_for("completed", later)
    if later > 100:
        wait_until(lambda: max(positions(pipeline).values(), default=0) > 0, 3, "the position goes on")
    else:
        assert max(positions(pipeline).values(), default=0) == 0
    assert ended(pipeline) == set(quick)
    worker.kill()
    pipeline.worker().start()
    wait_until(lambda: slow in ended(pipeline), 30, "the slow one has ended")
    assert starts(pipeline)[slow] == 2
    wait_until(lambda: positions(pipeline) == ends(pipeline), 10, "all are settled")


def test_no_record_is_acknowledged_before_its_outcome_is_durable(
    pipeline: Pipeline, stack: devstack.Stack
) -> None:
    """faust #189: events were acknowledged whatever the agent had made of them."""
    publish(pipeline, [Publication(Compute(work_ms=2000), "acme")])
    worker = pipeline.worker("document").start()
    wait_until(lambda: len(starts(pipeline)) == 1, 30, "the job runs")
    redis = stack.service("redis")
    redis.stop()
    try:
        # It is tried twice a second, and positions are committed more often than that.
        wait_until(lambda: "outcomes wait for the ledger" in worker.said(), 20, "its outcome waits")
        assert len(ended(pipeline)) == 1
        assert not any(topic == DOCUMENTS.topic for topic, _ in pipeline.committed("streams-document"))
    finally:
        redis.start()
    wait_until(
        lambda: [offset for (topic, _), offset in pipeline.committed("streams-document").items()
                 if topic == DOCUMENTS.topic and offset > 0] == [1],
        20, "it is committed",
    )  # fmt: skip
    assert list(starts(pipeline).values()) == [1]


def test_a_rebalance_commits_all_that_has_ended_even_without_a_ledger(
    pipeline: Pipeline, stack: devstack.Stack
) -> None:
    """parallel-consumer #365: what had ended since the last commit was read again by the next owner.

    Without Redis there is nothing that would drop what is read again, so that each of it would show. Each partition
    has one organization: what one has waiting holds the position back behind which another's jobs have ended.
    """
    redis = stack.service("redis")
    redis.stop()
    try:
        job_ids = publish(
            pipeline, [Publication(Work(work_ms=40), EACH_PARTITION[n % 4]) for n in range(2400)]
        )
        first, second = pipeline.worker().start(), pipeline.worker()
        wait_until(lambda: len(pipeline.effects()) > 200, 30, "the first worker runs jobs")
        second.start()
        wait_until(lambda: len({one.pid for one in pipeline.executions()}) == 2, 40, "both run jobs")
        assert first.terminate() == 0
        wait_until(lambda: len(ended(pipeline)) == 2400, 40, "all have ended")
        assert second.terminate() == 0
    finally:
        redis.start()
    assert starts(pipeline) == dict.fromkeys(job_ids, 1)
    assert sum(positions(pipeline).values()) == 2400


def assert_positions_are_sound(pipeline: Pipeline) -> None:
    """Fail when a position covers less than was committed before, or lies beyond its partition's end."""
    committed, written = positions(pipeline), ends(pipeline)
    assert all(1 <= committed[number] <= written[number] for number in written), (committed, written)


def test_jobs_that_outlast_rebalances_run_once_and_their_positions_stay_right(pipeline: Pipeline) -> None:
    """parallel-consumer #777: an outcome that came after the revocation was thrown away, and the job run again.

    parallel-consumer #894: on quiet partitions, outcomes that came after the assignment were committed wrongly.
    """
    # Longer than a worker gets at a rebalance, and than it takes another one to come and go.
    grace = {"REVOKE_GRACE": "200ms"}
    first = pipeline.worker(**grace).start()
    quick = publish(pipeline, [Publication(Work(), name) for name in EACH_PARTITION])
    pipeline.wait_for("completed", 4)
    wait_until(lambda: positions(pipeline) == {0: 1, 1: 1, 2: 1, 3: 1}, 10, "those are committed")
    slow = publish(pipeline, [Publication(Work(work_ms=12_000), name) for name in EACH_PARTITION * 2])
    wait_until(lambda: len(starts(pipeline)) == 12, 10, "the slow ones run")
    second = pipeline.worker(**grace).start()
    wait_for_members(pipeline, 2)
    assert_positions_are_sound(pipeline)
    assert second.terminate() == 0
    wait_for_members(pipeline, 1)
    assert ended(pipeline) == set(quick), "the slow ones still run"
    assert_positions_are_sound(pipeline)
    pipeline.wait_for("completed", 12, 30)
    # Whoever read them meanwhile may have left copies to ask again.
    wait_until(lambda: positions(pipeline) == ends(pipeline), 10, "all are committed")
    assert starts(pipeline) == dict.fromkeys([*quick, *slow], 1)
    assert "out of range" not in first.said() + second.said()


def test_partitions_are_read_on_after_rebalances_while_the_window_is_full(pipeline: Pipeline) -> None:
    """parallel-consumer #857: after a rebalance a worker took its own partition for somebody else's, for good."""
    narrow = {"WINDOW_RECORDS": "20"}
    names = [f"org-{n}" for n in range(12)]
    first = pipeline.worker(**narrow).start()
    job_ids = publish(pipeline, [Publication(Work(work_ms=40), name) for name in names * 150])
    wait_until(lambda: len(ended(pipeline)) > 50, 30, "it runs jobs")
    for _ in range(2):
        second = pipeline.worker(**narrow).start()
        wait_for_members(pipeline, 2)
        assert second.terminate() == 0
        wait_for_members(pipeline, 1)
    job_ids += publish(pipeline, [Publication(Work(), name) for name in names])
    wait_until(lambda: ended(pipeline) == set(job_ids), 30, "every partition is read to its end")
    assert first.process.poll() is None
    assert starts(pipeline) == dict.fromkeys(job_ids, 1)
    # A job that a busy machine holds up for long enough leaves a copy, which comes as one record more.
    wait_until(
        lambda: positions(pipeline) == ends(pipeline),
        10,
        lambda: f"{positions(pipeline)} of {ends(pipeline)}",
    )


def test_a_job_longer_than_a_session_costs_nobody_the_membership(pipeline: Pipeline) -> None:
    """aiokafka #848: a worker that was busy for too long left the group, its commit failed, and so on for ever.

    Its queue's window is full for as long as the job runs, and its partitions are not read meanwhile.
    """
    busy = {"CONCURRENCY_CRITICAL": "1", "WINDOW_RECORDS": "1"}
    for _ in range(2):
        pipeline.worker(**busy).start()
    wait_for_members(pipeline, 2)
    before = members(pipeline)
    works = [Work(work_ms=8000), *[Work(work_ms=10)] * 3]
    job_ids = publish(pipeline, [Publication(work, "acme") for work in works])
    wait_until(lambda: ended(pipeline) == set(job_ids), 30, "all have ended")
    assert starts(pipeline) == dict.fromkeys(job_ids, 1)
    wait_until(lambda: sum(positions(pipeline).values()) == 4, 10, "all are committed")
    assert members(pipeline) == before, "nobody left and came back"
