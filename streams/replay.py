"""Look into dead-letter topics, and send dead letters back to their queue."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from uuid6 import uuid7

from ratelimit import Admission, AdmissionUnavailable, identity
from schemas.codec import Codec, CodecError
from streams.consuming import Consumed, End, consumed
from streams.delivery import ORIGIN_CAP, Headers, header_text
from streams.errors import ConfigError, NotAccepted
from streams.lifecycle import Lifecycle
from streams.outcome import MESSAGE_CAP, clean
from streams.producer import Message, Producer
from streams.queues import Queue
from streams.settings import Settings

CARRIED = frozenset(
    {
        "attempt",
        "snoozes",
        "not-before",
        "reason",
        "error-kind",
        "error-message",
        "failed-at",
        "unknown-schema-since",
    }
)
"""Headers that tell of the deliveries so far; a replay begins anew without them."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: where it is, what it carries, and the job in it when it can be read."""

    queue: Queue
    place: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    job: dict[str, Any] | None
    failed_at: datetime

    def text(self, header: str) -> str:
        """Return a header as text, empty when it is not there."""
        return self.headers.get(header, b"").decode("utf-8", "replace")

    @property
    def organization_id(self) -> str:
        """Return whose the letter is: the job's organization, or what the key says of a job that cannot be read."""
        return self.job["organizationId"] if self.job else (self.key or b"").decode("utf-8", "replace")

    @property
    def job_id(self) -> str:
        return self.job["jobId"] if self.job else self.text("ce_id")

    @property
    def job_type(self) -> str:
        return self.job["jobType"] if self.job else self.text("ce_type")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant; what is None does not narrow."""

    organization_id: str | None = None
    job_type: str | None = None
    job_id: str | None = None
    since: datetime | None = None

    def has(self, letter: Letter) -> bool:
        """Return whether a letter is among them."""
        return (
            self.organization_id in (None, letter.organization_id)
            and self.job_type in (None, letter.job_type)
            and self.job_id in (None, letter.job_id)
            and (self.since is None or letter.failed_at >= self.since)
        )


def letters(settings: Settings, queue: Queue, codec: Codec, selection: Selection) -> Iterator[Letter]:
    """Yield the dead letters of a queue that are meant, up to what is there now, in the order of each partition.

    Raises ConfigError when the broker does not answer.
    """
    for record in _records(settings, queue.dead_letter_topic, selection.since):
        letter = _letter(queue, record, codec)
        if selection.has(letter):
            yield letter


def _letter(queue: Queue, record: Consumed, codec: Codec) -> Letter:
    try:
        job: dict[str, Any] | None = codec.decode(record.value or b"")
    except CodecError:
        job = None
    failed_at = datetime.fromtimestamp(record.timestamp_ms / 1000, UTC)
    return Letter(queue, record.place, record.key, record.value, record.headers, job, failed_at)


def _records(settings: Settings, topic: str, since: datetime | None) -> Iterator[Consumed]:
    """Yield what a topic holds now; joins no group and commits nothing."""
    seconds = settings.kafka_start_timeout.total_seconds()
    consumer = Consumer(
        {**settings.kafka, "group.id": "streams-replay", "enable.auto.commit": False, "log_level": 2,
         # The end of an empty partition is known when a fetch of it has waited.
         "enable.partition.eof": True, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10}
    )  # fmt: skip
    try:
        known = consumer.list_topics(topic, timeout=seconds).topics[topic]
        if known.error is not None:
            raise ConfigError(f"{topic}: {known.error.str()}; run: streams topics ensure")
        start = [TopicPartition(topic, number, _since_ms(since)) for number in known.partitions]
        if since is not None:
            start = consumer.offsets_for_times(start, timeout=seconds)
        open_partitions = {one.partition for one in start}
        consumer.assign(start)
        deadline = time.monotonic() + seconds
        while open_partitions:
            for record in consumed(consumer.consume(500, 0.05)):
                deadline = time.monotonic() + seconds
                if isinstance(record, End):
                    open_partitions.discard(record.partition)
                else:
                    yield record
            if time.monotonic() > deadline:
                raise ConfigError(f"{topic} could not be read to its end: no answer within {seconds:g} s")
    except KafkaException as error:
        raise ConfigError(f"{topic} cannot be read: {error.args[0].str()}") from error
    finally:
        consumer.close()


def _since_ms(since: datetime | None) -> int:
    return -2 if since is None else int(since.timestamp() * 1000)  # -2: the beginning


def latest(found: Iterable[Letter]) -> list[Letter]:
    """Return the letters, of each job only the last: an earlier one was replayed and died again."""
    last: dict[object, Letter] = {}
    for letter in found:
        last[(letter.organization_id, letter.job_id) if letter.job else letter.place] = letter
    return list(last.values())


async def unfinished(found: list[Letter], admission: Admission) -> list[Letter]:
    """Return the letters of jobs that have not completed since; all of them when Redis cannot tell."""
    readable = [letter for letter in found if letter.job]
    names = [
        identity(letter.organization_id, letter.job["idempotencyKey"] or letter.job_id)
        for letter in readable
        if letter.job
    ]
    try:
        done = await admission.completed(names)
    except AdmissionUnavailable:
        return found
    finished = {letter.place for letter, is_done in zip(readable, done, strict=True) if is_done}
    return [letter for letter in found if letter.place not in finished]


def replay(
    found: list[Letter], producer: Producer, lifecycle: Lifecycle, *, reason: str, timeout: timedelta
) -> str:
    """Write the letters to their queues again, bytes unchanged, as attempt 1 of a replay; returns the replay id.

    Raises NotAccepted when the broker did not confirm all of them. Replaying twice is harmless: a job that has
    completed is answered from the ledger.
    """
    replay_id = str(uuid7())
    at = datetime.now(UTC)
    records = [Message(one.queue.topic, one.key, one.value, _headers(one, replay_id)) for one in found]
    told = [
        lifecycle.stated(
            "replayed", one.job, at, queue=one.queue.name, maxAttempts=one.job["maxAttempts"] or 1,
            replayId=replay_id, reason=clean(reason, MESSAGE_CAP), origin=one.text("origin")[:ORIGIN_CAP],
        )
        for one in found
        if one.job
    ]  # fmt: skip
    sending = producer.send_blocking([*records, *told], timeout)
    sent = [one.job_id for index, one in enumerate(found) if sending.state(index) is True]
    rest = [one.job_id for index, one in enumerate(found) if sending.state(index) is not True]
    if rest:
        raise NotAccepted(
            f"{len(sent)} of {len(found)} dead letters were replayed; the broker did not confirm the rest",
            accepted=sent,
            unconfirmed=rest,
        )
    return replay_id


def _headers(letter: Letter, replay_id: str) -> Headers:
    headers = {name: value for name, value in letter.headers.items() if name not in CARRIED}
    headers["replay-id"] = replay_id.encode()
    headers["queue"] = letter.queue.name.encode()
    headers.setdefault("origin", header_text(letter.place))
    return list(headers.items())
