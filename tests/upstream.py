"""What became of jobs, records and group members, for the tests of bugs that others had."""

from collections import Counter

from streams.queues import CRITICAL
from tests.processes import Pipeline, wait_until


def starts(pipeline: Pipeline) -> Counter[str]:
    """Return how often each job was begun."""
    return Counter(one.job_id for one in pipeline.executions() if one.what == "start")


def ended(pipeline: Pipeline) -> set[str]:
    return {one.job_id for one in pipeline.executions() if one.what == "end"}


def positions(pipeline: Pipeline) -> dict[int, int]:
    """Return the committed positions of `critical` by partition."""
    return {
        number: offset for (topic, number), offset in pipeline.committed().items() if topic == CRITICAL.topic
    }


def ends(pipeline: Pipeline) -> dict[int, int]:
    """Return the ends of the partitions of `critical` that hold records."""
    return dict(Counter(record.partition for record in pipeline.records(CRITICAL.topic)))


def members(pipeline: Pipeline) -> dict[str, set[int]]:
    """Return the partitions of `critical` that each member has, or nothing while the group is on the move."""
    return {
        member: {number for topic, number in share if topic == CRITICAL.topic}
        for member, share in pipeline.shares().items()
    }


def wait_for_members(pipeline: Pipeline, count: int) -> None:
    """Wait until so many workers share the four partitions."""

    def shared() -> bool:
        parts = members(pipeline).values()
        return len(parts) == count and all(parts) and set().union(*parts) == {0, 1, 2, 3}

    wait_until(shared, 30, f"{count} workers share the partitions")
