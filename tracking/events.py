"""A lifecycle event as the store takes it in: the fields of `schemas/avro/lifecycle.avsc`, cleaned.

Text that PostgreSQL cannot hold is changed, never refused: a NUL or a lone surrogate becomes U+FFFD, a number
that is not finite becomes null (in a column) or its name (in JSON), JSON that was cut short becomes a string.
A duration below zero, of a clock that was set back, becomes zero.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KINDS = (
    "queued",
    "replayed",
    "started",
    "progressed",
    "snoozed",
    "retried",
    "cancelled",
    "dead",
    "completed",
)
"""Every kind this reader knows."""


class InvalidEvent(Exception):
    """The record is Avro, but no lifecycle event."""


class UnknownKind(Exception):
    """A newer writer's kind of event: not to be buried, a newer reader will know it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt."""

    kind: str
    message: str
    stack: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job; counters are those of the delivery it happened to."""

    id: str
    kind: str
    at: datetime
    job_id: str
    job_type: str
    queue_name: str
    organization_id: str
    attempt: int
    max_attempts: int
    snoozes: int = 0
    replay_id: str | None = None
    worker_id: str | None = None
    worker_host: str | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    not_before: datetime | None = None
    duration_ms: float | None = None
    cpu_time_ms: float | None = None
    memory_bytes: int | None = None
    input: str | None = None
    output: str | None = None
    progress: float | None = None
    reason: str | None = None
    error: Failure | None = None
    origin: str | None = None


_GOING_ON = ("started", "progressed")


def event_of(record: Mapping[str, Any]) -> Event:
    """Return the event in a decoded record.

    Raises InvalidEvent when a field is missing, UnknownKind when only a newer reader can fold it.
    """
    try:
        if record["kind"] not in KINDS:
            raise UnknownKind(f"no event kind {record['kind']!r} yet")
        error, at, started_at = record["error"], record["at"], record["startedAt"]
        ended = started_at is not None and record["kind"] not in _GOING_ON
        return Event(
            id=clean(record["eventId"]),
            kind=record["kind"],
            at=at,
            job_id=clean(record["jobId"]),
            job_type=clean(record["jobType"]),
            queue_name=clean(record["queue"]),
            organization_id=clean(record["organizationId"]),
            attempt=record["attempt"],
            max_attempts=record["maxAttempts"],
            snoozes=record["snoozes"],
            replay_id=_text(record["replayId"]),
            worker_id=_text(record["workerId"]) or None,
            worker_host=_text(record["workerHost"]) or None,
            queued_at=record["queuedAt"],
            started_at=started_at,
            finished_at=at if ended else None,
            not_before=record["notBefore"],
            duration_ms=max((at - started_at).total_seconds() * 1000, 0.0) if ended else None,
            cpu_time_ms=_duration(record["cpuTimeMs"]),
            memory_bytes=record["memoryBytes"],
            input=clean_json(record["input"]),
            output=clean_json(record["output"]),
            progress=_finite(record["progress"]),
            reason=_text(record["reason"]),
            error=None if error is None else _failure(error),
            origin=_text(record["origin"]) or None,
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise InvalidEvent(f"the record is no lifecycle event: {type(problem).__name__}") from None


def _failure(error: Mapping[str, Any]) -> Failure:
    return Failure(
        clean(error["kind"]), clean(error["message"]), _text(error["stack"]), clean(error["fingerprint"])
    )


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _duration(number: float | None) -> float | None:
    finite = _finite(number)
    return None if finite is None else max(finite, 0.0)


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def clean(text: str) -> str:
    """Return the text with what PostgreSQL cannot hold replaced by U+FFFD."""
    return _UNSTORABLE.sub("�", text)


def _text(text: str | None) -> str | None:
    return None if text is None else _UNSTORABLE.sub("�", text)


# Only text with one of these needs a second look: escapes, and numbers that a float or numeric cannot hold.
_SUSPECT = re.compile("\\\\u|[\0\ud800-\udfff]|NaN|Infinity|[eE][+-]?[0-9]{3,}")


def clean_json(text: str | None) -> str | None:
    """Return JSON that jsonb takes and that says the same; text that is no JSON becomes a JSON string."""
    if text is None:
        return None
    try:
        value = json.loads(text)
        return text if _SUSPECT.search(text) is None else json.dumps(_clean_value(value))
    except (ValueError, RecursionError):
        return json.dumps(clean(text))


def _clean_value(value: Any) -> Any:
    match value:
        case str():
            return clean(value)
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        case dict():
            return {clean(key): _clean_value(item) for key, item in value.items()}
        case list():
            return [_clean_value(item) for item in value]
        case _:
            return value
