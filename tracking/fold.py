"""The fold: what all events of a job, in any order and however often, say about it.

An execution is a row of registers. A register is a few columns that one event wrote together, and the key of
that event; of two rows the register with the greater key wins. `queued_at` and `origin` are the least known.
Greatest and least do not care about order, grouping or repetition, so neither does the fold, and the database
merges a row with the stored one by the same rule (`tracking.store` builds its statement from `REGISTERS`).
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tracking.events import KINDS, Event
from tracking.states import FINAL, Status

Row = dict[str, Any]
"""A row of job_executions, column to value; JSON columns hold text."""

IDENTITY = ("organization_id", "job_id")

REGISTERS: dict[str, tuple[str, ...]] = {
    "state_key": (
        "job_type", "queue_name", "status", "attempt", "max_attempts", "snoozes", "replay_id",
        "next_retry_at", "finished_at", "reason", "output", "last_event_at",
    ),
    "run_key": (
        "started_at", "worker_id", "worker_host", "duration_ms", "cpu_time_ms", "memory_bytes",
        "queue_time_ms",
    ),
    "error_key": ("error_kind", "error_message", "error_stack", "error_fingerprint"),
    "progress_key": ("progress",),
    "input_key": ("input",),
}  # fmt: skip
"""Key column to the columns that its event wrote; an empty key stands for no event and empty columns."""

LEAST = ("queued_at", "origin")

_STATUS = {
    "queued": Status.QUEUED,
    "replayed": Status.QUEUED,
    "started": Status.RUNNING,
    "progressed": Status.RUNNING,
    "snoozed": Status.DELAYED,
    "retried": Status.RETRYING,
    "dead": Status.DEAD,
    "cancelled": Status.CANCELLED,
    "completed": Status.COMPLETED,
}
# A started and a progressed event of one delivery are told apart by their time alone.
_STEP = {kind: str(index) for index, kind in enumerate(KINDS)} | {"progressed": str(KINDS.index("started"))}


def status_of(event: Event) -> Status:
    """Return the state that the event puts its job in."""
    if event.kind == "queued" and event.not_before is not None and event.not_before > event.at:
        return Status.DELAYED
    return _STATUS[event.kind]


def key_of(event: Event) -> str:
    """Return the event's place in the order of its job's events, as text that sorts by code point.

    A completed job stays completed, whatever else is said. Else a later replay beats an earlier one; within
    one replay the end beats what goes before it, then attempt, snoozes, the step of the delivery and the time
    decide, and the event's id where even those are the same.
    """
    status = _STATUS[event.kind]
    return (
        f"{status is Status.COMPLETED:d}{event.replay_id or '':<36}{status in FINAL:d}"
        f"{event.attempt:010d}{event.snoozes:010d}{_STEP[event.kind]}"
        f"{event.at.isoformat(timespec='microseconds')}{event.id}"
    )


def row_of(event: Event) -> Row:
    """Return the execution that a single event tells of."""
    key = key_of(event)
    status = status_of(event)
    error = event.error
    ran = event.started_at is not None
    return {
        "organization_id": event.organization_id,
        "job_id": event.job_id,
        "queued_at": event.queued_at or event.at,
        "origin": event.origin,
        "state_key": key,
        "job_type": event.job_type,
        "queue_name": event.queue_name,
        "status": status.value,
        "attempt": event.attempt,
        "max_attempts": event.max_attempts,
        "snoozes": event.snoozes,
        "replay_id": event.replay_id,
        "next_retry_at": event.not_before if status in (Status.DELAYED, Status.RETRYING) else None,
        "finished_at": (event.finished_at or event.at) if status in FINAL else None,
        "reason": event.reason,
        "output": event.output,
        "last_event_at": event.at,
        # Only an attempt makes a run: a snoozed event names a worker, too.
        "run_key": key if ran else "",
        "started_at": event.started_at,
        "worker_id": event.worker_id if ran else None,
        "worker_host": event.worker_host if ran else None,
        "duration_ms": event.duration_ms if ran else None,
        "cpu_time_ms": event.cpu_time_ms if ran else None,
        "memory_bytes": event.memory_bytes if ran else None,
        "queue_time_ms": queue_time_ms(event),
        "error_key": "" if error is None else key,
        "error_kind": error and error.kind,
        "error_message": error and error.message,
        "error_stack": error and error.stack,
        "error_fingerprint": error and error.fingerprint,
        "progress_key": "" if event.progress is None else key,
        "progress": event.progress,
        "input_key": "" if event.input is None else key,
        "input": event.input,
    }


def queue_time_ms(event: Event) -> float | None:
    """Return how long the job could have run before it did; None when the event does not tell.

    A first attempt could run from its publish on, or from the time it was published for. Of later ones only
    their due time says it; the `not_before` of a retried or snoozed event is that of the next delivery.
    """
    ready = event.queued_at if event.attempt == 1 and event.replay_id is None else None
    if event.not_before is not None and event.kind not in ("retried", "snoozed"):
        ready = event.not_before if ready is None else max(ready, event.not_before)
    if ready is None or event.started_at is None:
        return None
    return max(0.0, _milliseconds(ready, event.started_at))


def _milliseconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000


def merge(one: Row, other: Row) -> Row:
    """Return the execution that two rows of the same job tell of together."""
    merged = dict(one)
    for key, columns in REGISTERS.items():
        if other[key] > one[key]:
            merged[key] = other[key]
            for column in columns:
                merged[column] = other[column]
    for column in LEAST:
        if one[column] is None or (other[column] is not None and other[column] < one[column]):
            merged[column] = other[column]
    return merged


def fold(events: Iterable[Event]) -> list[Row]:
    """Return the executions that the events tell of, ordered by organization and job."""
    rows: dict[tuple[str, str], Row] = {}
    for event in events:
        row = row_of(event)
        identity = (event.organization_id, event.job_id)
        known = rows.get(identity)
        rows[identity] = row if known is None else merge(known, row)
    return [rows[identity] for identity in sorted(rows)]
