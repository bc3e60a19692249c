"""Where a waiting record goes: never early, seldom late, and nothing that somebody wrote stops the rest."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from streams.consuming import Consumed
from streams.delivery import EPOCH, milliseconds
from streams.producer import Message, Producer, Sending
from streams.queues import EMAILS, QUEUES, RETRY_DELAYS, SHORTEST_DELAY, waiting_topic
from streams.retry import RetryForwarder, goes_on_at, next_topic
from streams.settings import load_settings
from tests.conftest import ExpectedErrors
from tests.deliveries import NOON
from tests.rig import headers_of

POLL = timedelta(milliseconds=100)


@given(st.timedeltas(timedelta(0), timedelta(days=366)), st.data())
def test_a_record_is_never_early_and_late_by_one_poll_however_many_hops(
    wait: timedelta, data: st.DataObject
) -> None:
    due_ms = milliseconds(NOON + wait)
    due = EPOCH + timedelta(milliseconds=due_ms)
    headers = {"queue": b"emails", "not-before": b"%d" % due_ms}
    now = NOON
    topic = next_topic(headers, now)
    late = st.integers(0, POLL // timedelta(milliseconds=1))
    hops = 0
    while topic != EMAILS.topic:
        assert topic is not None
        written_ms = milliseconds(now)
        assert goes_on_at(topic, written_ms) <= due + timedelta(milliseconds=1), (
            "no hop lasts beyond the due time"
        )
        now = goes_on_at(topic, written_ms) + timedelta(milliseconds=data.draw(late) if hops < 20 else 0)
        topic = next_topic(headers, now)
        hops += 1
    # The queue's worker holds what is not due yet, for less than the shortest delay.
    assert due - now < SHORTEST_DELAY
    assert now - due <= POLL + timedelta(milliseconds=1)
    assert hops <= wait / timedelta(hours=6) + 30


@given(st.timedeltas(timedelta(days=-1), timedelta(days=400)))
def test_the_topic_is_the_longest_that_is_not_too_long(remaining: timedelta) -> None:
    topic = waiting_topic(EMAILS, remaining)
    fitting = [delay for delay in RETRY_DELAYS.values() if delay <= remaining]
    assert RETRY_DELAYS.get(topic) == max(fitting, default=None)
    assert topic in RETRY_DELAYS or topic == EMAILS.topic


def test_delays_are_listed_shortest_first() -> None:
    assert list(RETRY_DELAYS.values()) == sorted(RETRY_DELAYS.values())
    assert min(RETRY_DELAYS.values()) == SHORTEST_DELAY


@given(st.dictionaries(st.sampled_from(["queue", "not-before"]), st.binary(max_size=20)))
def test_any_header_is_survived(headers: dict[str, bytes]) -> None:
    topic = next_topic(headers, NOON)
    queue = headers.get("queue", b"").decode("utf-8", "replace")
    assert (topic is None) == (queue not in QUEUES)


@pytest.mark.parametrize("stated", [b"", b"soon", b"-1", b"0", b"1" * 17, b"1772366400000"])
def test_a_due_time_that_is_none_or_past_goes_to_the_queue(stated: bytes) -> None:
    assert next_topic({"queue": b"emails", "not-before": stated}, NOON) == EMAILS.topic


def test_a_due_time_at_the_end_of_all_time_waits_on() -> None:
    assert next_topic({"queue": b"emails", "not-before": b"9" * 16}, NOON) == "jobs.retry.6h"


class FakeConsumer:
    """Keeps what the forwarder does with its partitions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.committed: dict[int, int] = {}

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.calls += [("pause", one.partition) for one in partitions]

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.calls += [("resume", one.partition) for one in partitions]

    def seek(self, partition: TopicPartition) -> None:
        self.calls.append(("seek", partition.offset))

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        self.committed |= {one.partition: one.offset for one in offsets}


class FakeProducer(Producer):
    """Writes everything, but refuses what goes to some topics."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.refused: dict[str, KafkaError] = {}

    def start(self, messages: Sequence[Message]) -> Sending:
        sending = Sending(len(messages))
        for index, message in enumerate(messages):
            error = self.refused.get(message.topic)
            if error is None:
                self.sent.append(message)
            sending.reporter(index)(error, None)
        return sending

    def poll(self) -> int:
        return 0


@pytest.fixture
def producer() -> FakeProducer:
    return FakeProducer()


@pytest.fixture
def forwarder(producer: FakeProducer) -> Any:
    forwarder = RetryForwarder(load_settings(_env_file=None))
    forwarder._producer = producer
    return forwarder


def waiting(offset: int, written_ago: timedelta, partition: int = 0, **headers: Any) -> Consumed:
    written_ms = milliseconds(datetime.now(UTC) - written_ago)
    stated = {
        "queue": b"emails",
        "attempt": b"2",
        **{name.replace("_", "-"): raw for name, raw in headers.items()},
    }
    return Consumed("jobs.retry.5s", partition, offset, written_ms, b"acme", b"the job", stated)


def test_what_is_due_goes_on_unchanged_and_is_committed_after(forwarder: Any, producer: FakeProducer) -> None:
    consumer = FakeConsumer()
    forwarder._forward(consumer, [waiting(7, timedelta(seconds=6)), waiting(8, timedelta(seconds=5.5))])
    assert [message.topic for message in producer.sent] == [EMAILS.topic] * 2
    assert producer.sent[0] == Message(
        EMAILS.topic, b"acme", b"the job", [("queue", b"emails"), ("attempt", b"2")]
    )
    assert consumer.committed == {0: 9}
    assert consumer.calls == []


def test_a_head_that_is_not_due_pauses_its_partition_and_no_other(
    forwarder: Any, producer: FakeProducer
) -> None:
    consumer = FakeConsumer()
    early, due = timedelta(seconds=1), timedelta(seconds=6)
    forwarder._forward(consumer, [waiting(1, due), waiting(2, early), waiting(3, early), waiting(9, due, 1)])
    assert len(producer.sent) == 2
    assert consumer.committed == {0: 2, 1: 10}
    assert consumer.calls == [("pause", 0), ("seek", 2)]
    now = datetime.now(UTC)
    forwarder._resume(consumer, now + timedelta(seconds=3))
    assert consumer.calls[2:] == []
    forwarder._resume(consumer, now + timedelta(seconds=4.5))
    assert consumer.calls[2:] == [("resume", 0)]


def test_garbage_is_passed_over_and_told(
    forwarder: Any, producer: FakeProducer, expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("jobs.retry.5s/0/1 names no queue and stays behind")
    consumer = FakeConsumer()
    due = timedelta(seconds=6)
    forwarder._forward(
        consumer, [waiting(1, due, queue=b"\xff"), waiting(2, due, not_before=b"9" * 16), waiting(3, due)]
    )
    assert [message.topic for message in producer.sent] == ["jobs.retry.6h", EMAILS.topic]
    assert consumer.committed == {0: 4}


def test_what_is_too_large_for_its_queue_is_buried_and_the_rest_goes_on(
    forwarder: Any, producer: FakeProducer, expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("a retry is too large for jobs.emails and is buried")
    consumer = FakeConsumer()
    producer.refused[EMAILS.topic] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    forwarder._forward(
        consumer, [waiting(1, timedelta(seconds=6)), waiting(2, timedelta(seconds=6), queue=b"webhooks")]
    )
    assert [message.topic for message in producer.sent] == ["jobs.webhooks", EMAILS.dead_letter_topic]
    letter = producer.sent[1]
    assert (letter.key, letter.value) == (b"acme", b"the job")
    assert headers_of(letter)["error-kind"] == "TooLarge"
    assert consumer.committed == {0: 3}


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (EMAILS.topic, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        ("jobs.retry.6h", KafkaError.MSG_SIZE_TOO_LARGE),
    ],
)
def test_any_other_refusal_commits_nothing(
    forwarder: Any, producer: FakeProducer, topic: str, code: int
) -> None:
    consumer = FakeConsumer()
    producer.refused[topic] = KafkaError(code)
    due: dict[str, Any] = {"not_before": b"9" * 14} if topic != EMAILS.topic else {}
    with pytest.raises(KafkaException):
        forwarder._forward(consumer, [waiting(1, timedelta(seconds=6), **due)])
    assert consumer.committed == {}


async def test_it_shows_that_it_goes_round_from_its_start_to_its_end(
    forwarder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoRecords:
        def __init__(self, config: Any) -> None:
            self.asked = 0

        def subscribe(self, topics: list[str], on_revoke: Any) -> None: ...

        def consume(self, count: int, timeout: float) -> list[Any]:
            self.asked += 1
            if self.asked == 3:
                assert forwarder.forwards
                forwarder._stopping.set()
            return []

        def close(self) -> None: ...

    monkeypatch.setattr("streams.retry.Consumer", NoRecords)
    monkeypatch.setattr(forwarder._producer, "close", lambda: 0)
    assert (forwarder.forwards, forwarder.rounds) == (False, 0)
    forwarder.start()
    forwarder._thread.join(10)
    assert forwarder.rounds >= 3
    assert not forwarder.forwards


async def test_an_error_of_any_kind_starts_it_again(
    forwarder: Any, expected_errors: ExpectedErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected_errors.add("retry forwarding starts again")
    turns: list[int] = []

    def consume() -> None:
        turns.append(1)
        if len(turns) == 1:
            raise ValueError("what nobody thought of")
        forwarder._stopping.set()

    monkeypatch.setattr(forwarder, "_consume", consume)
    monkeypatch.setattr(forwarder._producer, "close", lambda: 0)
    forwarder.start()
    forwarder._thread.join(10)
    assert len(turns) == 2
