"""Send records that wait in retry topics on to their queue when they are due."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.consuming import Consumed, End, consumed
from streams.delivery import EPOCH, header_text, milliseconds, not_before_of
from streams.errors import InvalidRecord
from streams.producer import Message, Producer
from streams.queues import QUEUES, RETRY_DELAYS, waiting_topic
from streams.settings import Settings

log = logging.getLogger(__name__)

WALL_CLOCK = partial(datetime.now, UTC)

GROUP = "streams-retry-forwarder"
POLL = timedelta(milliseconds=100)
BATCH = 500
LATEST = datetime.max.replace(tzinfo=UTC)

_DEAD_LETTER_TOPICS = {queue.topic: queue.dead_letter_topic for queue in QUEUES.values()}


def goes_on_at(topic: str, written_ms: int) -> datetime:
    """Return when a record of a retry topic goes on: at the end of the topic's delay."""
    return EPOCH + timedelta(milliseconds=written_ms) + RETRY_DELAYS[topic]


def next_topic(headers: dict[str, bytes], now: datetime) -> str | None:
    """Return where a record whose hop has ended goes: a retry topic again, its queue, or None when none is named."""
    queue = QUEUES.get(headers.get("queue", b"").decode("utf-8", "replace"))
    if queue is None:
        return None
    try:
        due = not_before_of(headers)
    except InvalidRecord:
        return queue.topic  # whose worker refuses it
    return queue.topic if due is None or due <= now else waiting_topic(queue, due - now)


class RetryForwarder:
    """Send due records back to their queue, with value, key and headers as they are.

    Never early; late by the poll interval. One topic holds one delay, so a partition's head is always its
    earliest, and a head that is not due pauses its partition until it is. A plain consumer of its own in a
    thread of its own: every worker has one, and their group shares the partitions. A crash between forwarding
    and committing forwards again; the fence in the ledger tells the copy.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], datetime] = WALL_CLOCK,
        cancelled: Callable[[Mapping[str, bytes]], bool] = lambda headers: False,
    ) -> None:
        self._clock = clock
        self._cancelled = cancelled
        self._config: dict[str, Any] = {
            **settings.kafka,
            "group.id": GROUP,
            "client.id": f"{GROUP}-{settings.worker_id}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "session.timeout.ms": int(settings.kafka_session_timeout.total_seconds() * 1000),
            # Of each partition only the head is due: the defaults would keep 64 MiB, and fetch 1 MiB of each at once.
            "queued.max.messages.kbytes": 4096,
            "queued.min.messages": 1000,
            "fetch.queue.backoff.ms": 100,
            "max.partition.fetch.bytes": 128 * 1024,
            "fetch.max.bytes": 1024 * 1024,
            "log_level": 2,
        }
        self._producer = Producer(settings.kafka)
        self._paused: dict[tuple[str, int], datetime] = {}
        self._stopping = threading.Event()
        self.rounds = 0
        """How often the thread has gone round its loop."""
        self._thread = threading.Thread(target=self._run, name="retry-forwarder", daemon=True)

    def start(self) -> None:
        """Begin to forward."""
        self._thread.start()

    @property
    def forwards(self) -> bool:
        """Return whether it was started and not stopped, whatever its thread does."""
        return self._thread.ident is not None and not self._stopping.is_set()

    async def stop(self) -> None:
        """Finish the batch at hand and leave the group."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.join, 10)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.rounds += 1
            try:
                self._consume()
            except KafkaException as error:
                log.warning("retry forwarding starts again after: %s", error.args[0].str())
                self._stopping.wait(1)
            except Exception:
                # A thread that ended would leave every retry where it is, and nobody would notice.
                log.exception("retry forwarding starts again")
                self._stopping.wait(1)
        self._producer.close()

    def _consume(self) -> None:
        consumer = Consumer(self._config)
        self._paused.clear()
        try:
            consumer.subscribe(list(RETRY_DELAYS), on_revoke=self._forget)
            while not self._stopping.is_set():
                self.rounds += 1
                self._resume(consumer, self._clock())
                self._forward(consumer, consumed(consumer.consume(BATCH, POLL.total_seconds())))
        finally:
            consumer.close()

    def _forget(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # A pause outlives the rebalance when the same member gets its partition back.
        consumer.resume([TopicPartition(topic, number) for topic, number in self._paused])
        self._paused.clear()

    def _resume(self, consumer: Consumer, now: datetime) -> None:
        due = [partition for partition, until in self._paused.items() if until <= now]
        for topic, number in due:
            del self._paused[topic, number]
            consumer.resume([TopicPartition(topic, number)])

    def _forward(self, consumer: Consumer, records: Iterable[Consumed | End]) -> None:
        now = self._clock()
        forwarded: list[Message] = []
        commit: dict[tuple[str, int], TopicPartition] = {}
        for record in records:
            if isinstance(record, End) or (record.topic, record.partition) in self._paused:
                continue
            until = goes_on_at(record.topic, record.timestamp_ms)
            if until > now:
                self._paused[record.topic, record.partition] = until
                consumer.pause([record.at()])
                consumer.seek(record.at())
                continue
            # A cancelled job need not hop on: its queue's worker settles it, and remembers that it is over.
            topic = next_topic(record.headers, LATEST if self._cancelled(record.headers) else now)
            if topic is None:
                log.error("%s names no queue and stays behind", record.place)
            else:
                forwarded.append(Message(topic, record.key, record.value, list(record.headers.items())))
            commit[record.topic, record.partition] = record.at(1)
        if not commit:
            return
        self._write(forwarded)
        consumer.commit(offsets=list(commit.values()), asynchronous=False)

    def _write(self, messages: list[Message]) -> None:
        """Write records and wait for them; one too large for its queue, as none of a worker's is, is buried."""
        sending = self._producer.start(messages)
        while sending.left:
            if not self._producer.poll():
                time.sleep(0.002)
        too_large: list[Message] = []
        for index, message in enumerate(messages):
            error = sending.state(index)
            if isinstance(error, KafkaError):
                if error.code() != KafkaError.MSG_SIZE_TOO_LARGE or message.topic not in _DEAD_LETTER_TOPICS:
                    raise KafkaException(error)
                log.error("a retry is too large for %s and is buried", message.topic)
                too_large.append(buried(message, error.str(), self._clock()))
        if too_large:
            self._write(too_large)


def buried(message: Message, why: str, at: datetime) -> Message:
    """Return the dead letter of a record that its queue's topic does not take."""
    headers: dict[str, str | bytes | None] = dict(message.headers or [])
    headers |= {
        "reason": header_text(why),
        "error-kind": b"TooLarge",
        "error-message": header_text(why),
        "failed-at": b"%d" % milliseconds(at),
    }
    return Message(_DEAD_LETTER_TOPICS[message.topic], message.key, message.value, list(headers.items()))
