"""Turn what a caller wants done into the records that say so; nothing is sent here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from uuid6 import uuid7

from ratelimit import identity
from schemas.codec import Codec, DoesNotFit
from streams.delivery import ATTEMPT_CAP, IDENTIFIER, KEY_CAP, Delivery, envelope, milliseconds
from streams.errors import InvalidJob
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, FollowUp, Handler, Payload
from streams.lifecycle import Lifecycle, visible
from streams.producer import Message
from streams.queues import Queue, waiting_topic

MAX_JOB_BYTES = 900 * 1024
"""Largest encoded job that is accepted; the topics take 1 MiB, and headers need room."""


@dataclass(frozen=True, slots=True)
class Publication:
    """One job to be published; checked when it is made into records."""

    payload: Payload
    organization_id: str
    job_id: str | None = None
    idempotency_key: str | None = None
    ordering_key: str | None = None
    priority: int = 5
    delay: timedelta | None = None
    run_at: datetime | None = None
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked publication: its id and the records to write, the job's own first."""

    job_id: str
    messages: list[Message]
    organization_id: str
    identity: str
    """What makes two publications the same job."""


class Publisher:
    """Checks publications and makes their records."""

    def __init__(self, codecs: Mapping[str, Codec], lifecycle: Lifecycle) -> None:
        self._codecs = codecs
        self._lifecycle = lifecycle

    def prepare(self, wanted: Publication, now: datetime) -> Prepared:
        """Return the records of a publication: the job and its `queued` event; raises InvalidJob."""
        handler = _handler_of(wanted.payload)
        _check(wanted, now)
        due = wanted.run_at or (now + wanted.delay if wanted.delay else None)
        job_id = wanted.job_id or _id_of(wanted)
        job = {
            "jobId": job_id,
            "jobType": handler.job_type,
            "organizationId": wanted.organization_id,
            "createdAt": now,
            "priority": wanted.priority,
            "idempotencyKey": wanted.idempotency_key,
            "orderingKey": wanted.ordering_key,
            "maxAttempts": wanted.max_attempts,
            "payload": wanted.payload.model_dump(by_alias=True),
        }
        try:
            value = self._codecs[handler.queue.name].encode(job)
        except DoesNotFit as error:
            raise InvalidJob(f"{handler.job_type}: {error}") from None
        if len(value) > MAX_JOB_BYTES:
            raise InvalidJob(
                f"{handler.job_type}: the job takes {len(value)} bytes, more than the {MAX_JOB_BYTES} allowed; "
                "store large input as an artifact and publish its URI"
            )
        record = _record(handler.queue, job, value, now, due)
        event = self._lifecycle.stated(
            "queued", job, now,
            queue=handler.queue.name,
            maxAttempts=wanted.max_attempts or handler.max_attempts,
            not_before=due,
            input=visible(wanted.payload),
        )  # fmt: skip
        name = identity(wanted.organization_id, wanted.idempotency_key or job_id)
        return Prepared(job_id, [record, event], wanted.organization_id, name)


def _id_of(wanted: Publication) -> str:
    """Return a new job id; jobs of an organization with one idempotency key are one job, so they have one id."""
    if wanted.idempotency_key is None:
        return str(uuid7())
    return str(uuid5(NAMESPACE_URL, f"{wanted.organization_id}/{wanted.idempotency_key!a}"))


def _record(
    queue: Queue, job: Mapping[str, Any], value: bytes, now: datetime, due: datetime | None
) -> Message:
    headers = envelope(job["jobId"], job["jobType"], job["organizationId"], queue, now)
    topic = queue.topic
    if due is not None and due > now:
        headers["not-before"] = b"%d" % milliseconds(due)
        topic = waiting_topic(queue, due - now)
    return Message(topic, job["organizationId"].encode(), value, list(headers.items()))


def _handler_of(payload: Payload) -> Handler:
    job_type = TYPE_OF_PAYLOAD.get(type(payload))
    if job_type is None:
        known = ", ".join(sorted(kind.__name__ for kind in TYPE_OF_PAYLOAD))
        raise InvalidJob(f"{type(payload).__name__} is the payload of no job type; expected one of {known}")
    return HANDLERS[job_type]


def _check(wanted: Publication, now: datetime) -> None:
    _identifier("organization_id", wanted.organization_id)
    if wanted.job_id is not None:
        _identifier("job_id", wanted.job_id)
        if wanted.idempotency_key is not None:
            raise InvalidJob("give job_id or idempotency_key, not both: each makes a repeat the same job")
    for name, key in (("idempotency_key", wanted.idempotency_key), ("ordering_key", wanted.ordering_key)):
        if key is not None and not isinstance(key, str):
            raise InvalidJob(f"{name} must be a text, got {type(key).__name__}")
        if key is not None and not 1 <= len(key) <= KEY_CAP:
            raise InvalidJob(f"{name} must have 1 to {KEY_CAP} characters, got {len(key)}")
    _whole("priority", wanted.priority, 10, " (most urgent)")
    if wanted.max_attempts is not None:
        _whole("max_attempts", wanted.max_attempts, ATTEMPT_CAP)
    if wanted.delay is not None and wanted.run_at is not None:
        raise InvalidJob("give delay or run_at, not both")
    if wanted.delay is not None and wanted.delay < timedelta(0):
        raise InvalidJob(f"delay must not be negative, got {wanted.delay}")
    if wanted.run_at is not None and wanted.run_at.tzinfo is None:
        raise InvalidJob(f"run_at must have a time zone, got {wanted.run_at.isoformat()}")
    longest = timedelta(days=366)
    if (wanted.delay or timedelta(0)) > longest or (wanted.run_at and wanted.run_at - now > longest):
        raise InvalidJob(f"a job may be delayed by at most {longest.days} days")


def _identifier(name: str, value: object) -> None:
    if not isinstance(value, str) or IDENTIFIER.fullmatch(value) is None:
        shown = repr(value)[:140] if value else "nothing"
        raise InvalidJob(
            f"{name} must be 1 to 128 letters, digits or _.@- and start with a letter or digit, got {shown}"
        )


def _whole(name: str, value: object, most: int, note: str = "") -> None:
    # Commands and application code hand on what they were given, of whatever type.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidJob(f"{name} must be 1{note} to {most}, got {value!r}")


class FollowUps:
    """Publishes what a job asked for, with ids that come from that job: a repeat publishes the same ones."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def of(self, delivery: Delivery, wanted: Sequence[FollowUp], now: datetime) -> list[Message]:
        """Return the records of a completed job's follow-ups."""
        messages: list[Message] = []
        for index, follow_up in enumerate(wanted):
            seed = f"{delivery.organization_id}/{delivery.idempotency_key}/{index}"
            publication = Publication(
                follow_up.payload,
                delivery.organization_id,
                job_id=str(uuid5(NAMESPACE_URL, seed)),
                delay=follow_up.delay,
            )
            messages += self._publisher.prepare(publication, now.astimezone(UTC)).messages
        return messages
