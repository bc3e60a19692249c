"""The durable producer: what it says was sent is on every in-sync replica."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Message as KafkaMessage
from confluent_kafka import Producer as KafkaProducer

from streams.delivery import Headers

POLL_SECONDS = 0.002


class Message(NamedTuple):
    """A record to be written."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers | None = None


Report = Callable[[KafkaError | None, KafkaMessage | None], None]


class Sending:
    """The delivery reports of one batch."""

    __slots__ = ("_states", "errors", "left")

    def __init__(self, size: int) -> None:
        self.left = size
        self.errors: list[KafkaError] = []
        self._states: dict[int, KafkaError | bool] = {}

    def report(self, error: KafkaError | None, message: KafkaMessage | None) -> None:
        """Take the report of a message."""
        self.left -= 1
        if error is not None:
            self.errors.append(error)

    def reporter(self, index: int) -> Report:
        """Return a callback that takes a report and remembers whose it is."""

        def report(error: KafkaError | None, message: KafkaMessage | None) -> None:
            self.report(error, message)
            self._states[index] = True if error is None else error

        return report

    def state(self, index: int) -> KafkaError | bool:
        """Return True when a message is on every in-sync replica, its error, or False with no report yet."""
        return self._states.get(index, False)


class Producer:
    """An idempotent confluent-kafka producer that partitions as the Java client does (murmur2).

    `delivery_timeout` bounds how long a message is tried; None means until it is there. Delivery reports are
    collected by whoever waits, so nothing here needs a thread.
    """

    def __init__(self, config: dict[str, Any], *, delivery_timeout: timedelta | None = None) -> None:
        timeout_ms = 0 if delivery_timeout is None else int(delivery_timeout.total_seconds() * 1000)
        self._producer = KafkaProducer(
            {
                **config,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 1,
                "compression.type": "lz4",
                "message.max.bytes": 4 * 1024 * 1024,
                "queue.buffering.max.messages": 500_000,
                "message.timeout.ms": timeout_ms,
                # With several, a partition that does not know the producer yet may write the second batch and
                # refuse the first; librdkafka takes the success of a later batch for that of all before it.
                # Records were lost so.
                "max.in.flight": 1,
                # librdkafka's own lines about a broker that is down repeat for ever; errors are reported here.
                "log_level": 2,
            }
        )

    def start(self, messages: Sequence[Message]) -> Sending:
        """Hand messages to librdkafka, keeping the state of each; blocks while its queue is full, so not for a loop."""
        sending = Sending(len(messages))
        for index, message in enumerate(messages):
            report = sending.reporter(index)
            while not self._produce(message, report):
                self._producer.poll(0.05)
        return sending

    async def send(self, messages: Sequence[Message]) -> list[KafkaError]:
        """Write messages and wait for them; returns the errors, none when all are there."""
        sending = Sending(len(messages))
        report = sending.report
        for message in messages:
            while not self._produce(message, report):
                await self._await_reports()
        while sending.left:
            await self._await_reports()
        return sending.errors

    async def send_each(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        """Write messages and wait for them, at most `timeout`, keeping the state of each."""
        sending = Sending(len(messages))
        deadline = time.monotonic() + timeout.total_seconds()
        for index, message in enumerate(messages):
            report = sending.reporter(index)
            while not self._produce(message, report):
                if time.monotonic() > deadline:
                    return sending
                await self._await_reports()
        while sending.left and time.monotonic() < deadline:
            await self._await_reports()
        return sending

    def _produce(self, message: Message, report: Report) -> bool:
        """Hand over a message; False when the queue is full. Whatever else becomes of it is reported."""
        topic, key, value, headers = message
        try:
            self._producer.produce(topic, value, key, headers=headers, on_delivery=report)
        except BufferError:
            return False
        except KafkaException as error:
            report(error.args[0], None)
        return True

    async def _await_reports(self) -> None:
        if not self.poll():
            await asyncio.sleep(POLL_SECONDS)

    def send_blocking(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        """Write messages and wait for them, at most `timeout`; the twin of `send_each` for where no loop is."""
        sending = self.start(messages)
        deadline = time.monotonic() + timeout.total_seconds()
        while sending.left and time.monotonic() < deadline:
            self._producer.poll(0.05)
        return sending

    def poll(self) -> int:
        """Take the delivery reports that are in and return how many there were."""
        return int(self._producer.poll(0))

    def close(self, timeout: timedelta = timedelta(seconds=5)) -> int:
        """Wait for what is on its way; returns how many messages were given up."""
        return int(self._producer.flush(timeout.total_seconds()))
