"""The states of a job and the moves between them. The picture of this table: docs/explanation/states.md."""

from enum import StrEnum


class Status(StrEnum):
    """Where a job is."""

    WAITING = "waiting"
    """On other jobs."""
    DELAYED = "delayed"
    """For its time: published with a delay, or snoozed."""
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    """For its next attempt, after one that failed."""
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


MOVES: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.QUEUED, Status.DELAYED, Status.CANCELLED}),
    Status.DELAYED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.DELAYED, Status.DEAD, Status.CANCELLED}),
    # Running to running: the worker died and another one took the job over.
    Status.RUNNING: frozenset(
        {
            Status.RUNNING,
            Status.DELAYED,
            Status.RETRYING,
            Status.COMPLETED,
            Status.DEAD,
            Status.CANCELLED,
        }
    ),
    Status.RETRYING: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    # Only a replay brings a job back.
    Status.DEAD: frozenset({Status.QUEUED}),
    Status.CANCELLED: frozenset({Status.QUEUED}),
}
"""Every move a job may make. Coming due has no event, so the store shows some moves two at a time."""

INITIAL = frozenset({Status.WAITING, Status.DELAYED, Status.QUEUED})
FINAL = frozenset({Status.COMPLETED, Status.DEAD, Status.CANCELLED})
