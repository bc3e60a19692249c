"""One reading of a job's record, and the headers that carry the state of its delivery.

A record's value is the job as its producer stated it and is never rewritten; retries, snoozes, replays and
dead letters carry the same bytes under new headers. The whole contract: docs/reference/wire-format.md.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pydantic import ValidationError

from ratelimit import InLine, Lease, Limits, fence, identity
from streams.errors import InvalidRecord
from streams.jobs import HANDLERS, Handler, Payload
from streams.offsets import PartitionOffsets
from streams.queues import Queue

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,127}")
"""What job and organization ids may look like: they become parts of keys, file names and log lines."""

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LATEST_MS = (datetime(9000, 1, 1, tzinfo=UTC) - EPOCH) // _MILLISECOND

SOURCE = b"/streams"
"""The `ce_source` of jobs from this project's client, which tells a job's input in its `queued` event."""

ATTEMPT_CAP = 1000
"""Highest attempt that is believed, whatever a header says, and most attempts that a producer may ask for."""

SNOOZE_CAP = 999_999
"""Highest number of snoozes that is believed: a fence has six digits for it."""

KEY_CAP = 256
"""Most characters of an idempotency or ordering key."""

HEADERS_CAP = 8 * 1024
"""Most bytes of headers, names included, that a record may have."""

ORIGIN_CAP = 512

DEFAULT_PRIORITY = 5

Headers = list[tuple[str, str | bytes | None]]
"""Headers as confluent-kafka's producer takes them; their values are bytes."""


class Record(Protocol):
    """What is read from a topic: aiokafka's ConsumerRecord has this shape."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True, eq=False)
class Delivery:
    """A job's record as one worker read it; compared by identity."""

    queue: Queue
    offsets: PartitionOffsets
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    handler: Handler
    job_id: str
    organization_id: str
    payload: Payload
    created_at: datetime
    priority: int
    idempotency_key: str
    ordering_key: str | None
    """None, too, when its job type asks for no order."""
    attempt: int
    max_attempts: int
    snoozes: int
    replay_id: str | None
    not_before: datetime | None
    origin: str
    token: str = ""
    leased_until: float = math.inf
    """When the lease runs out unless it is renewed, by `time.monotonic()`."""
    limits: Limits = ()
    """What it was admitted under: the places it holds of them are kept and given back with its lease."""
    crashes: int = 0
    waits: int = 0
    """How often it found its job running elsewhere."""
    watched: bool = False
    """A copy waits in a retry topic in its stead, and its own record is settled."""
    leads: bool = False
    """When it was taken out of the window, nothing else of its organization was out."""
    charged: int = -1
    """What its organization was charged for it when it was taken out of the window; -1 while it is not out."""

    @property
    def identity(self) -> str:
        """Return what makes two deliveries the same job: the organization and the idempotency key."""
        return identity(self.organization_id, self.idempotency_key)

    @property
    def rank(self) -> int:
        """Return its job's place in the order of its ordering key: what it was given to keep, else its offset."""
        kept = self.headers.get("rank", b"")
        return int(kept) if kept.isdigit() and len(kept) < 16 else self.offset

    @property
    def in_line(self) -> InLine:
        """Return its job's place in the line of its ordering key."""
        line = f"{self.queue.name}:{identity(self.organization_id, self.ordering_key or '')}"
        return InLine(line, self.rank, self.identity, self.fence())

    @property
    def is_copy(self) -> bool:
        """Return whether it was left behind when its job had begun: only the ledger knows if anything is left to do."""
        return "copy" in self.headers

    def lease(self) -> Lease:
        """Return the lease that it holds."""
        return Lease(self.identity, self.token, self.limits)

    def fence(self) -> str:
        """Return this delivery's place in the order of the job's deliveries."""
        return fence(self.replay_id or "", self.attempt, self.snoozes)


class Decoder(Protocol):
    """The part of `schemas.codec.Codec` that reading needs."""

    def decode(self, data: bytes) -> dict[str, Any]: ...


def read(queue: Queue, record: Record, offsets: PartitionOffsets, codec: Decoder) -> Delivery:
    """Return the delivery in a record of a queue's topic.

    Raises InvalidRecord when key, headers, body and handler do not fit together, `schemas.codec.NotAvro`
    and `schemas.codec.UnknownSchema` as the codec does.
    """
    headers = headers_of(record)
    job = codec.decode(record.value or b"")
    job_id, job_type, organization = job["jobId"], job["jobType"], job["organizationId"]
    _agree("ce_id", headers.get("ce_id"), "jobId", job_id)
    _agree("ce_type", headers.get("ce_type"), "jobType", job_type)
    _agree("organization-id", headers.get("organization-id"), "organizationId", organization)
    _agree("the key", record.key, "organizationId", organization)
    check_identifier("organizationId", organization)
    check_identifier("jobId", job_id)
    try:
        return _delivery(queue, record, offsets, headers, job)
    except InvalidRecord as error:
        raise InvalidRecord(str(error), job) from None


def _delivery(
    queue: Queue, record: Record, offsets: PartitionOffsets, headers: dict[str, bytes], job: dict[str, Any]
) -> Delivery:
    """Return the delivery of a job whose organization and id are proven."""
    job_id, job_type = job["jobId"], job["jobType"]
    handler = HANDLERS.get(job_type)
    if handler is None or handler.queue is not queue:
        known = sorted(name for name, one in HANDLERS.items() if one.queue is queue)
        raise InvalidRecord(
            f"no handler for job type {job_type!r} on {queue.name}; it has {', '.join(known)}"
        )
    try:
        payload = handler.payload.model_validate(job["payload"])
    except ValidationError as error:
        raise InvalidRecord(f"the payload does not fit {job_type}: {describe(error)}") from None
    except Exception as error:  # noqa: BLE001 - a validator with a bug; its message may quote the payload
        raise InvalidRecord(
            f"the payload of {job_type} could not be checked: {type(error).__name__}"
        ) from None
    max_attempts = job["maxAttempts"]
    if not 1 <= job["priority"] <= 10:
        raise InvalidRecord(f"priority must be 1 to 10, got {job['priority']}")
    if max_attempts is not None and not 1 <= max_attempts <= ATTEMPT_CAP:
        raise InvalidRecord(f"maxAttempts must be 1 to {ATTEMPT_CAP}, got {max_attempts}")
    replay_id = headers.get("replay-id", b"").decode("ascii", "replace")
    if replay_id and _UUID7.fullmatch(replay_id) is None:
        # Fences are compared by it: one that does not grow with time would shut out the replays to come.
        raise InvalidRecord(f"header replay-id must be a UUIDv7 in lower case, got {replay_id[:64]!r}")
    check_headers(headers)
    for name in ("idempotencyKey", "orderingKey"):
        if job[name] is not None and not 1 <= len(job[name]) <= KEY_CAP:
            raise InvalidRecord(f"{name} must have 1 to {KEY_CAP} characters, got {len(job[name])}")
    return Delivery(
        queue=queue,
        offsets=offsets,
        offset=record.offset,
        key=record.key,
        value=record.value or b"",
        headers=headers,
        handler=handler,
        job_id=job_id,
        organization_id=job["organizationId"],
        payload=payload,
        created_at=job["createdAt"],
        priority=job["priority"],
        idempotency_key=job["idempotencyKey"] or job_id,
        ordering_key=job["orderingKey"] if handler.ordering == "key" else None,
        attempt=_count(headers, "attempt", 1, ATTEMPT_CAP),
        max_attempts=max_attempts or handler.max_attempts,
        snoozes=_count(headers, "snoozes", 0, SNOOZE_CAP),
        replay_id=replay_id or None,
        not_before=not_before_of(headers),
        origin=origin_of(record, headers),
    )


def check_headers(headers: Mapping[str, bytes]) -> None:
    """Raise InvalidRecord when headers leave no room for those that carrying the record on will add."""
    size = len("".join(headers)) + len(b"".join(headers.values()))
    if size > HEADERS_CAP:
        raise InvalidRecord(f"the headers take {size} bytes, more than the {HEADERS_CAP} allowed")


def not_before_of(headers: Mapping[str, bytes]) -> datetime | None:
    """Return the instant before which the record does not go on; raises InvalidRecord."""
    instant_ms = _count(headers, "not-before", 0, _LATEST_MS)
    return EPOCH + instant_ms * _MILLISECOND if instant_ms else None


def headers_of(record: Record) -> dict[str, bytes]:
    """Return the headers that have a value."""
    return {name: value for name, value in record.headers if value is not None}


def priority_of(headers: Mapping[str, bytes]) -> int:
    """Return the priority that headers tell, the default when they do not; the body has the last word."""
    stated = headers.get("priority", b"")
    return int(stated) if stated.isdigit() and len(stated) <= 2 else DEFAULT_PRIORITY


def place_of(record: Record) -> str:
    """Return where a record is, as headers and rows name it: topic/partition/offset."""
    return f"{record.topic}/{record.partition}/{record.offset}"


def origin_of(record: Record, headers: Mapping[str, bytes]) -> str:
    """Return where the job's first record is: what its header says, else here."""
    origin = headers.get("origin")
    return place_of(record) if origin is None else origin[:ORIGIN_CAP].decode("utf-8", "replace")


def _agree(header: str, found: bytes | None, field_name: str, stated: str) -> None:
    if found is None:
        raise InvalidRecord(f"{header} is missing; expected {field_name} {stated[:128]!r}")
    if found != stated.encode("utf-8", "surrogatepass"):
        raise InvalidRecord(f"{header} is {found[:128]!r} but {field_name} is {stated[:128]!r}")


def _count(headers: Mapping[str, bytes], name: str, default: int, cap: int) -> int:
    """Return a counting header; never more than its cap, whoever wrote it."""
    raw = headers.get(name)
    if raw is None:
        return default
    if not raw.isdigit() or len(raw) > 16:
        raise InvalidRecord(f"header {name} must be a whole number, got {raw[:32]!r}")
    return min(max(int(raw), default), cap)


def check_identifier(name: str, value: str) -> None:
    """Raise InvalidRecord unless the id has the documented shape."""
    if IDENTIFIER.fullmatch(value) is None:
        raise InvalidRecord(
            f"{name} must be 1 to 128 letters, digits or _.@- and start with a letter or digit, got {value[:140]!r}"
        )


def describe(error: ValidationError) -> str:
    """Return what is wrong with a payload, without any of its values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}"
        for problem in error.errors(include_input=False, include_url=False, include_context=False)
    )


def envelope(job_id: str, job_type: str, organization: str, queue: Queue, now: datetime) -> dict[str, bytes]:
    """Return the headers of a job's first record: a CloudEvents 1.0 binary envelope and its organization."""
    return {
        "ce_specversion": b"1.0",
        "ce_id": job_id.encode(),
        "ce_type": job_type.encode(),
        "ce_source": SOURCE,
        "ce_time": now.isoformat().encode(),
        "content-type": b"application/avro",
        "organization-id": organization.encode(),
        "queue": queue.name.encode(),
    }


def next_headers(
    delivery: Delivery,
    *,
    attempt: int,
    snoozes: int,
    reason: str,
    not_before: datetime | None = None,
    rank: int | None = None,
    copy: bool = False,
    extra: Iterable[tuple[str, str]] = (),
) -> Headers:
    """Return the headers of the record that carries the job on, to a retry or dead-letter topic.

    With `rank` it keeps its place in the order of its ordering key; else its place is where it arrives. `copy` says
    that the job has begun already.
    """
    headers = dict(delivery.headers)
    headers["queue"] = delivery.queue.name.encode()
    headers["attempt"] = b"%d" % attempt
    headers["snoozes"] = b"%d" % snoozes
    headers["origin"] = delivery.origin.encode()
    headers["reason"] = header_text(reason)
    headers.pop("rank", None)
    if rank is not None:
        headers["rank"] = b"%d" % rank
    headers.pop("copy", None)
    if copy:
        headers["copy"] = b"1"
    headers.pop("not-before", None)
    if not_before is not None:
        headers["not-before"] = b"%d" % milliseconds(not_before)
    headers.update((name, header_text(text)) for name, text in extra)
    return list(headers.items())


def header_text(text: str, limit: int = 1000) -> bytes:
    """Return a text as a header carries it: UTF-8, capped."""
    return text[:limit].encode("utf-8", "replace")


def milliseconds(instant: datetime) -> int:
    """Return an instant as milliseconds since the epoch, rounded up so that nothing runs early."""
    return -((EPOCH - instant) // _MILLISECOND)
