"""Read back what was skipped of organizations with more work than their share, as it runs low."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from streams.delivery import Record
from streams.errors import StreamsError
from streams.lanes import Lane
from streams.offsets import PartitionOffsets
from streams.settings import Settings
from streams.surplus import Surplus

if TYPE_CHECKING:
    from confluent_kafka import Consumer

log = logging.getLogger(__name__)

LOOK_EVERY = timedelta(milliseconds=10)
RETRY = timedelta(seconds=1)
POLL = timedelta(milliseconds=200)
READS_WITHIN = timedelta(seconds=10)

AT_ONCE = 10
"""How many records are decoded and taken before others get their turn: about a millisecond of the worker's loop."""


class NotReadBack(StreamsError):
    """Records could not be read back; they are where they were."""


class Reader(Protocol):
    """Reads records that were read before."""

    async def read(self, topic: str, partition: int, first_offset: int, count: int) -> Sequence[Record]:
        """Return the records within so many offsets; raises NotReadBack."""
        ...

    async def start(self, topic: str, partition: int) -> int:
        """Return the first offset that is still in the log; raises NotReadBack."""
        ...


@dataclass(slots=True)
class ReadBack:
    """A record that was read back; it has the shape of what the main consumer reads."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class KafkaReader:
    """Reads with a consumer of its own, outside of the group, which is opened when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._config: dict[str, Any] = {
            **settings.kafka,
            # A name is required; no membership comes of it, and nothing is committed.
            "group.id": "streams-refill",
            "client.id": f"streams-refill-{settings.worker_id}",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            # As the main consumer: a record that this one did not see would count as gone.
            "isolation.level": "read_uncommitted",
            "fetch.wait.max.ms": 10,
            "queued.max.messages.kbytes": 1024,
            "queued.min.messages": 1000,
            # By default a queue that was full is filled up again after a second, and the lane is empty before that.
            "fetch.queue.backoff.ms": 5,
            "log_level": 2,
        }
        self._consumer: Consumer | None = None
        self._at: tuple[str, int, int] | None = None
        """Where the consumer goes on by itself: topic, partition, offset."""
        self._turn = threading.Lock()
        self._closing = threading.Event()

    async def read(self, topic: str, partition: int, first_offset: int, count: int) -> Sequence[Record]:
        """Return the records within so many offsets; raises NotReadBack."""
        return await asyncio.to_thread(self._read, topic, partition, first_offset, count)

    async def start(self, topic: str, partition: int) -> int:
        """Return the first offset that is still in the log; raises NotReadBack."""
        return await asyncio.to_thread(self._start, topic, partition)

    async def close(self) -> None:
        """Let go of the connection; what is being read is given up."""
        self._closing.set()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._turn:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _start(self, topic: str, partition: int) -> int:
        from confluent_kafka import TopicPartition

        with self._connection(f"{topic}/{partition}") as consumer:
            place = TopicPartition(topic, partition)
            start: int = consumer.get_watermark_offsets(place, READS_WITHIN.total_seconds())[0]
            return start

    def _read(self, topic: str, partition: int, first_offset: int, count: int) -> Sequence[Record]:
        from confluent_kafka import TopicPartition

        with self._connection(f"{topic}/{partition}/{first_offset}") as consumer:
            if self._at != (topic, partition, first_offset):
                consumer.assign([TopicPartition(topic, partition, first_offset)])
            self._at = None
            return self._consume(consumer, topic, partition, first_offset, first_offset + count)

    @contextmanager
    def _connection(self, place: str) -> "Iterator[Consumer]":
        from confluent_kafka import Consumer, KafkaException

        # A coroutine that is cancelled leaves its thread behind: only that knows when the consumer is free.
        with self._turn:
            if self._closing.is_set():
                raise NotReadBack(f"{place}: the worker stops")
            if self._consumer is None:
                self._consumer = Consumer(self._config)
            try:
                yield self._consumer
            except KafkaException as error:
                raise NotReadBack(f"{place}: {error.args[0].str()}") from error

    def _consume(
        self, consumer: "Consumer", topic: str, partition: int, next_offset: int, end: int
    ) -> list[ReadBack]:
        from streams.consuming import End, consumed

        found: list[ReadBack] = []
        until = time.monotonic() + READS_WITHIN.total_seconds()
        while next_offset < end:
            if time.monotonic() > until or self._closing.is_set():
                raise NotReadBack(f"{topic}/{partition}/{next_offset} did not come within {READS_WITHIN}")
            for one in consumed(consumer.consume(end - next_offset, POLL.total_seconds())):
                # What the consumer had fetched before it was sent elsewhere may still come.
                if (one.topic, one.partition) != (topic, partition):
                    continue
                if isinstance(one, End):
                    return found
                next_offset = one.offset + 1
                if one.offset < end:
                    headers = list(one.headers.items())
                    found.append(
                        ReadBack(topic, partition, one.offset, one.timestamp_ms, one.key, one.value, headers)
                    )
        self._at = (topic, partition, next_offset)
        return found


class Refill:
    """Fills up the lanes of one queue that run low.

    `take` puts what was read back into the window. Nothing is read while `full`: too much waits to be settled.
    """

    def __init__(
        self,
        topic: str,
        surplus: Surplus,
        reader: Reader,
        take: Callable[[Sequence[Record], PartitionOffsets], None],
        full: Callable[[], bool],
    ) -> None:
        self._topic = topic
        self._surplus = surplus
        self._reader = reader
        self._take = take
        self._full = full
        self._wake = asyncio.Event()
        self._stopped = False
        self.rounds = 0
        """How often something was read back."""

    def wake(self) -> None:
        """Begin to look, as something is skipped."""
        self._wake.set()

    def stop(self) -> None:
        """Read nothing more back."""
        self._stopped = True
        self._wake.set()

    @property
    def could_go_on(self) -> bool:
        """Return whether a lane runs low of which something is skipped."""
        return not (self._stopped or self._full()) and self._surplus.low() is not None

    async def run(self) -> None:
        """Read back what is needed until stopped."""
        while not self._stopped:
            if not self._surplus.lanes:
                self._wake.clear()
                await self._wake.wait()
            elif self._full() or (low := self._surplus.low()) is None:
                await asyncio.sleep(LOOK_EVERY.total_seconds())
            else:
                await self._fill(*low)

    async def _fill(self, lane: Lane, offsets: PartitionOffsets, wanted: Sequence[int]) -> None:
        first, last = wanted[0], wanted[-1]
        try:
            records = await self._reader.read(self._topic, offsets.partition, first, last - first + 1)
            found = {record.offset: record for record in records}
            missing = [offset for offset in wanted if offset not in found]
            # All were there when they were skipped: what is missing was lost on the way, unless the log has lost it.
            start = await self._reader.start(self._topic, offsets.partition) if missing else 0
            there = next((offset for offset in missing if offset >= start), None)
            wanted = [offset for offset in wanted if there is None or offset < there]
            if not wanted:
                raise NotReadBack(f"{self._topic}/{offsets.partition}/{there} is there and did not come")
        except NotReadBack as error:
            log.warning("records from %d to %d are read back later: %s", first, last, error)
            await asyncio.sleep(RETRY.total_seconds())
            return
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            if self._stopped or offsets.gone or not self._take_back(lane, offsets, part, found):
                break
            self.rounds += 1
            await asyncio.sleep(0)

    def _take_back(
        self, lane: Lane, offsets: PartitionOffsets, wanted: Sequence[int], found: Mapping[int, Record]
    ) -> bool:
        """Let the oldest records that were skipped of a lane come in; returns whether there was room for all."""
        taken: list[Record] = []
        gone = size = count = 0
        for offset in wanted:
            record = found.get(offset)
            size += len(record.value or b"") if record else 0
            if count and not self._surplus.has_room(lane, size):
                break
            count += 1
            if not offsets.take_back(offset):
                continue
            if record is None:
                offsets.settle(offset)
                gone += 1
            else:
                taken.append(record)
        self._surplus.taken_back(lane, offsets, count)
        if gone:
            where = f"{self._topic}/{offsets.partition}/{wanted[0]}"
            log.warning(
                "%d records from %s on are gone: they waited for too long to be read back", gone, where
            )
        self._take(taken, offsets)
        return count == len(wanted)
