"""What happened to a job, told as events; `schemas/avro/lifecycle.avsc` is the shape."""

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from pydantic_core import PydanticSerializationError

from streams.delivery import SOURCE, Delivery
from streams.jobs import Payload, secret_fields
from streams.outcome import MESSAGE_CAP, Attempt, Failure, clean
from streams.producer import Message
from streams.queues import LIFECYCLE_TOPIC

_bits = random.Random().getrandbits
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Kind = Literal[
    "queued", "started", "progressed", "retried", "snoozed", "completed", "dead", "cancelled", "replayed"
]

INPUT_CAP = 16_000
"""Characters of JSON that are kept of an input."""


class Encoder(Protocol):
    """The part of `schemas.codec.Codec` that telling needs."""

    def encode(self, record: dict[str, Any]) -> bytes: ...


class Lifecycle:
    """Tells events on behalf of one worker, or of a producer when it has no worker."""

    def __init__(self, codec: Encoder, *, worker_id: str = "", host: str = "") -> None:
        self._codec = codec
        self._worker = {"workerId": worker_id, "workerHost": host}

    def of(
        self,
        kind: Kind,
        delivery: Delivery,
        at: datetime,
        *,
        started_at: datetime | None = None,
        attempt: Attempt | None = None,
        not_before: datetime | None = None,
        reason: str | None = None,
        progress: float | None = None,
        failure: Failure | None = None,
        output: str | None = None,
        memory_bytes: int | None = None,
    ) -> Message:
        """Return the event of something that happened to a delivery."""
        event = {
            "eventId": event_id(),
            "kind": kind,
            "at": microseconds(at),
            "jobId": delivery.job_id,
            "jobType": delivery.handler.job_type,
            "queue": delivery.queue.name,
            "organizationId": delivery.organization_id,
            "attempt": delivery.attempt,
            "maxAttempts": delivery.max_attempts,
            "snoozes": delivery.snoozes,
            "replayId": delivery.replay_id,
            "queuedAt": microseconds(delivery.created_at),
            "startedAt": microseconds(started_at) if started_at else None,
            "notBefore": microseconds(not_before) if not_before else None,
            "cpuTimeMs": attempt.cpu_ms if attempt else None,
            "memoryBytes": (attempt.memory_bytes if attempt else None) or memory_bytes,
            # The project's own client has told the input already, in the job's `queued` event.
            "input": None if delivery.headers.get("ce_source") == SOURCE else visible(delivery.payload),
            "output": output,
            "progress": progress,
            "reason": reason and clean(reason, MESSAGE_CAP),
            "error": failure and {
                "kind": failure.kind, "message": failure.message, "stack": failure.stack,
                "fingerprint": failure.fingerprint,
            },
            "origin": delivery.origin,
            **self._worker,
        }  # fmt: skip
        return self._message(event)

    def stated(
        self,
        kind: Kind,
        job: Mapping[str, Any],
        at: datetime,
        *,
        not_before: datetime | None = None,
        **facts: Any,
    ) -> Message:
        """Return the event of a job that is not being delivered, from its common fields and further facts."""
        event = {
            "eventId": event_id(),
            "kind": kind,
            "at": microseconds(at),
            "attempt": 1,
            "snoozes": 0,
            "queuedAt": microseconds(job["createdAt"]),
            "notBefore": microseconds(not_before) if not_before else None,
            "jobId": job["jobId"],
            "jobType": job["jobType"],
            "organizationId": job["organizationId"],
            **self._worker,
            **facts,
        }
        return self._message(event)

    def _message(self, event: dict[str, Any]) -> Message:
        return Message(LIFECYCLE_TOPIC, event["jobId"].encode(), self._codec.encode(event))


def microseconds(instant: datetime) -> int:
    """Return an instant as Avro's timestamp-micros has it; cheaper here than in the encoder."""
    return (instant - _EPOCH) // _MICROSECOND


def event_id() -> str:
    """Return a UUIDv7 (RFC 9562, 5.7); four times as fast as the library's, and one is needed per job."""
    now_ms = time.time_ns() // 1_000_000
    # One %-format takes three quarters of the time of an f-string with the same five numbers.
    return "%08x-%04x-7%03x-%04x-%012x" % (  # noqa: UP031
        now_ms >> 16, now_ms & 0xFFFF, _bits(12), 0x8000 | _bits(14), _bits(48),
    )  # fmt: skip


def visible(payload: Payload) -> str:
    """Return a payload as events may show it: JSON without its secret fields, capped."""
    try:
        text = payload.model_dump_json(by_alias=True, exclude=secret_fields(type(payload)))
    except PydanticSerializationError:
        return '{"unreadable":true}'
    return text if len(text) <= INPUT_CAP else f'{{"truncated":true,"length":{len(text)}}}'
