"""Writing when librdkafka's queue is full: the loop goes on, a thread waits."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.producer import Message, Producer

SECOND = timedelta(seconds=1)


class Queue:
    """A queue of librdkafka's with room for one message, which is there after so many polls."""

    def __init__(self, polls: int = 3) -> None:
        self.polls = polls
        self.left = 0
        self.waited: list[float] = []
        self.taken: list[bytes] = []
        self.refused: set[bytes] = set()
        self._report: Callable[[Any, Any], None] | None = None

    def produce(self, topic: str, value: bytes, key: bytes, *, headers: Any, on_delivery: Any) -> None:
        if value in self.refused:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self._report is not None:
            raise BufferError
        self._report, self.left = on_delivery, self.polls
        self.taken.append(value)

    def poll(self, timeout: float) -> int:
        self.waited.append(timeout)
        self.left -= 1
        if self._report is None or self.left > 0:
            return 0
        report, self._report = self._report, None
        report(None, None)
        return 1


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def producer(queue: Queue) -> Producer:
    producer: Any = Producer({"bootstrap.servers": "127.0.0.1:1"})
    producer._producer = queue
    return producer  # type: ignore[no-any-return]


def messages(count: int) -> list[Message]:
    return [Message("jobs.emails", b"acme", b"%d" % number) for number in range(count)]


async def beats(work: Any) -> tuple[Any, int]:
    """Return what came of the work, and how many turns others had."""
    running, turns = asyncio.ensure_future(work), 0
    while not running.done():
        turns += 1
        await asyncio.sleep(0)
    return running.result(), turns


async def test_in_the_loop_others_get_their_turn_while_the_queue_is_full(
    producer: Producer, queue: Queue
) -> None:
    errors, turns = await beats(producer.send(messages(5)))
    assert errors == []
    assert queue.taken == [b"0", b"1", b"2", b"3", b"4"]
    assert set(queue.waited) == {0}, "the loop never waits in librdkafka"
    assert turns > 10
    sending, turns = await beats(producer.send_each(messages(5), 10 * SECOND))
    assert [sending.state(index) for index in range(5)] == [True] * 5
    assert set(queue.waited) == {0}
    assert turns > 10


async def test_a_queue_that_stays_full_is_given_up_in_time_and_what_was_not_taken_is_not_confirmed(
    producer: Producer, queue: Queue
) -> None:
    queue.polls = 10**9
    async with asyncio.timeout(5):
        sending = await producer.send_each(messages(3), timedelta(milliseconds=50))
    assert [sending.state(index) for index in range(3)] == [False] * 3
    assert queue.taken == [b"0"]


async def test_what_is_refused_at_once_is_an_error_of_its_own(producer: Producer, queue: Queue) -> None:
    queue.refused = {b"1"}
    sending = await producer.send_each(messages(3), 10 * SECOND)
    states = [sending.state(index) for index in range(3)]
    assert (states[0], states[2]) == (True, True)
    assert isinstance(states[1], KafkaError)
    assert [error.code() for error in await producer.send(messages(3))] == [KafkaError.MSG_SIZE_TOO_LARGE]


def test_a_thread_waits_for_room(producer: Producer, queue: Queue) -> None:
    sending = producer.send_blocking(messages(4), 10 * SECOND)
    assert [sending.state(index) for index in range(4)] == [True] * 4
    assert min(queue.waited) > 0
