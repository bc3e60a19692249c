"""The sink: lifecycle events from their topic into the database.

Kafka's group only says which partitions are ours; where to read on is asked of PostgreSQL, where the position
moves in the transaction that writes the rows. So there is one way back from every failure: forget what was
read, wait, ask again. Reading twice is harmless, because the fold is (`tracking.fold`).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from sqlalchemy.exc import DBAPIError

from schemas import Codec, NotAvro, RegistryError, UnknownSchema
from tracking.database import Fenced, meaning, refuses_the_data, sqlstate
from tracking.dead_letters import DeadLetters
from tracking.events import Event, InvalidEvent, UnknownKind, event_of
from tracking.store import Partition, Store

log = logging.getLogger(__name__)

_SLICE = 0.2
"""Seconds after which a wait looks whether it should end."""


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """Where the sink reads and how it waits."""

    topic: str
    dead_letter_topic: str
    group: str = "tracking"
    batch: int = 2_000
    """Most events in one transaction."""
    linger: timedelta = timedelta(milliseconds=200)
    """How long a transaction waits to be full."""
    first_wait: timedelta = timedelta(milliseconds=200)
    longest_wait: timedelta = timedelta(seconds=5)
    """Waits between tries double from the first to the longest."""
    schema_wait: timedelta = timedelta(seconds=5)
    """How long a partition rests whose next event was written with a schema not known yet."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A record and the event in it, or the problem that it holds none."""

    message: Message
    event: Event | None
    problem: str = ""

    @property
    def partition(self) -> Partition:
        return partition_of(self.message)


def partition_of(message: Message) -> Partition:
    """Return the topic and partition that a record came from."""
    topic, partition = message.topic(), message.partition()
    assert topic is not None  # only of messages that were never read
    assert partition is not None
    return topic, partition


def offset_of(message: Message) -> int:
    """Return where in its partition a record is."""
    offset = message.offset()
    assert offset is not None
    return offset


class Sink:
    """Reads the lifecycle topic and keeps the store equal to the fold of it.

    Loses nothing while Kafka or PostgreSQL is away: it keeps its place in the group and tries again. A record
    that is no event goes to the dead-letter topic before the position passes it. Several sinks of one group
    share the partitions.
    """

    def __init__(self, store: Store, codec: Codec, kafka: Mapping[str, Any], settings: SinkSettings) -> None:
        self._store = store
        self._codec = codec
        self._kafka = dict(kafka)
        self._settings = settings
        self._dead_letters = DeadLetters(kafka, settings.dead_letter_topic)
        self._stopping = threading.Event()
        self._assigned: list[Partition] = []
        self._epochs: dict[Partition, int] = {}
        self._held: dict[Partition, tuple[int, float]] = {}
        self.written = 0
        """Records settled since the start."""

    def stop(self) -> None:
        """Ask `run` to return once the transaction under way is through; may be called from a signal handler."""
        self._stopping.set()

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Read until stopped or done. Raises KafkaException when Kafka says that nothing can help."""
        while not self._stopping.is_set():
            with self._joined() as consumer:
                try:
                    return self._follow(consumer, done)
                except Fenced as lost:
                    log.warning("%s; joining the group again", lost)
        return None

    @contextmanager
    def _joined(self) -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "session.timeout.ms": 15_000,
                # By default a request waits a minute for a broker that hangs, and the group waits with it.
                "socket.timeout.ms": 10_000,
                "topic.metadata.refresh.interval.ms": 10_000,
                # Ten answers a second, not one for each event, and at once while there is more to read than that.
                "fetch.wait.max.ms": 100,
                "fetch.min.bytes": 64 * 1024,
                "queued.max.messages.kbytes": 32_768,
                **self._kafka,
                "group.id": self._settings.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                # Only where a position has fallen out of the topic: what is left of it is read again.
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "range",
                "error_cb": _log_kafka,
            },
            logger=log,
        )
        consumer.subscribe(
            [self._settings.topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )
        try:
            yield consumer
        finally:
            consumer.close()
            self._forget([])

    def _follow(self, consumer: Consumer, done: Callable[[], bool]) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                if done():
                    return
                self._take_over(consumer)
                self._release(consumer)
                readings = self._read(consumer)
                if readings:
                    self._write(consumer, readings)
                failures = 0
            except (DBAPIError, KafkaException) as error:
                if _is_fatal(error):
                    raise
                wait = min(self._settings.first_wait * 2 ** min(failures, 16), self._settings.longest_wait)
                failures += 1
                _log_failure(error, wait)
                self._start_over(consumer, wait)

    # Which partitions are ours, and where to read on

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing is read until the database has said from where: `_take_over`.
        consumer.assign([])
        self._forget([(partition.topic, partition.partition) for partition in partitions])

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._forget([])

    def _forget(self, assigned: list[Partition]) -> None:
        self._assigned = assigned
        self._epochs.clear()
        self._held.clear()

    def _take_over(self, consumer: Consumer) -> None:
        if self._epochs or not self._assigned:
            return
        claims = self._store.claim(self._assigned)
        self._epochs = {partition: claim.epoch for partition, claim in claims.items()}
        consumer.assign([TopicPartition(*partition, claim.position) for partition, claim in claims.items()])
        for (topic, partition), claim in claims.items():
            log.info("reading %s/%d from %d, epoch %d", topic, partition, claim.position, claim.epoch)

    def _start_over(self, consumer: Consumer, wait: timedelta) -> None:
        """Drop everything read, and keep the place in the group while waiting."""
        consumer.assign([])
        self._forget(self._assigned)
        deadline = time.monotonic() + wait.total_seconds()
        while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            consumer.poll(min(left, _SLICE))

    # From records to rows

    def _read(self, consumer: Consumer) -> list[Reading]:
        messages = consumer.consume(self._settings.batch, self._settings.linger.total_seconds())
        readings = []
        for message in messages:
            error = message.error()
            if error is not None:
                _log_kafka(error)
                continue
            # Not ours any more, or behind an event that waits for its schema: it will be read again.
            if partition_of(message) not in self._epochs or partition_of(message) in self._held:
                continue
            try:
                readings.append(Reading(message, event_of(self._codec.decode(message.value() or b""))))
            except (NotAvro, InvalidEvent) as problem:
                readings.append(Reading(message, None, str(problem)))
            except (UnknownSchema, UnknownKind) as problem:
                self._hold(consumer, message, problem)
        return readings

    def _hold(self, consumer: Consumer, message: Message, problem: Exception) -> None:
        topic, partition = partition_of(message)
        log.warning("%s/%d waits at %d: %s", topic, partition, offset_of(message), problem)
        consumer.pause([TopicPartition(topic, partition)])
        until = time.monotonic() + self._settings.schema_wait.total_seconds()
        self._held[topic, partition] = offset_of(message), until

    def _release(self, consumer: Consumer) -> None:
        due = {place: offset for place, (offset, until) in self._held.items() if until <= time.monotonic()}
        if due:
            self._look_up_schemas()
        for (topic, partition), offset in due.items():
            del self._held[topic, partition]
            consumer.seek(TopicPartition(topic, partition, offset))
            consumer.resume([TopicPartition(topic, partition)])

    def _look_up_schemas(self) -> None:
        try:
            self._codec.refresh()
        except (RegistryError, OSError) as error:
            log.warning("no schema looked up: %s", error)

    def _write(self, consumer: Consumer, readings: Sequence[Reading]) -> None:
        poison = [(reading.message, reading.problem) for reading in readings if reading.event is None]
        if poison:
            self._bury(poison)
        self._commit(readings)
        self.written += len(readings)
        # For tools that show lag; nothing here ever reads it.
        consumer.commit(
            offsets=[TopicPartition(*place, offset) for place, offset in _positions(readings).items()],
            asynchronous=True,
        )

    def _commit(self, readings: Sequence[Reading]) -> None:
        """Write readings in one transaction, or in as many as it takes to leave out what the database refuses."""
        events = [reading.event for reading in readings if reading.event is not None]
        try:
            self._store.commit(events, _positions(readings), self._epochs)
        except DBAPIError as error:
            if not refuses_the_data(error):
                raise
            if len(readings) > 1:
                middle = len(readings) // 2
                self._commit(readings[:middle])
                self._commit(readings[middle:])
            else:
                self._bury([(readings[0].message, _refusal(error))])
                self._store.commit([], _positions(readings), self._epochs)

    def _bury(self, letters: Sequence[tuple[Message, str]]) -> None:
        self._dead_letters.send(letters)
        for message, reason in letters:
            topic, partition = partition_of(message)
            log.warning("dead letter %s/%d/%d: %s", topic, partition, offset_of(message), reason)


def _positions(readings: Sequence[Reading]) -> dict[Partition, int]:
    return {reading.partition: offset_of(reading.message) + 1 for reading in readings}


def _refusal(error: DBAPIError) -> str:
    """Return why the database refused an event, without the value it quotes."""
    diagnostics = getattr(error.orig, "diag", None)
    constraint = getattr(diagnostics, "constraint_name", None)
    reason = f"refused by the database: {type(error.orig).__name__} ({sqlstate(error)})"
    return f"{reason}, {constraint}" if constraint else reason


def _is_fatal(error: Exception) -> bool:
    return (
        isinstance(error, KafkaException) and isinstance(error.args[0], KafkaError) and error.args[0].fatal()
    )


def _log_failure(error: Exception, wait: timedelta) -> None:
    if isinstance(error, DBAPIError):
        known = meaning(error)
        passing = known is not None
        what = str(known or f"{type(error.orig).__name__} ({sqlstate(error)})")
    else:
        passing, what = True, str(error)
    log.log(logging.WARNING if passing else logging.ERROR, "%s; again in %.1f s", what, wait.total_seconds())


def _log_kafka(error: KafkaError) -> None:
    log.warning("kafka: %s", error.str())
