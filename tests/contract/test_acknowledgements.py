"""What librdkafka says was written must be there: tried on the mock cluster inside it, which can refuse a batch."""

import asyncio
import ctypes
import glob
from collections.abc import Iterator
from datetime import timedelta

import confluent_kafka
import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.producer import Message, Producer

WITHIN = timedelta(seconds=10)
PRODUCE, NOT_LEADER = 0, 6
ROUND_TRIP_MS = 300


class Cluster:
    """One mock broker with one topic of one partition."""

    def __init__(self) -> None:
        (path,) = glob.glob(f"{confluent_kafka.__path__[0]}.libs/librdkafka-*.so*")
        self._library = ctypes.CDLL(path)
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"2", None, 0)
        self._client = ctypes.c_void_p(self._library.rd_kafka_new(0, configuration, None, 0))
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, 1))
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._library.rd_kafka_mock_topic_create(self._cluster, b"jobs", 1, 1)

    def answer_after(self, milliseconds: int) -> None:
        self._library.rd_kafka_mock_broker_set_rtt(self._cluster, 1, milliseconds)

    def refuse_next(self, error: int) -> None:
        errors = (ctypes.c_int * 1)(error)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(PRODUCE), ctypes.c_size_t(1), errors
        )

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def written(cluster: Cluster) -> set[bytes | None]:
    cluster.answer_after(0)
    consumer = Consumer(
        {"bootstrap.servers": cluster.bootstrap, "group.id": "reader", "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition("jobs", 0, 0)])
    found: set[bytes | None] = set()
    try:
        while (message := consumer.poll(10)) is not None and message.error() is None:
            found.add(message.value())
    finally:
        consumer.close()
    return found


async def test_what_is_told_as_written_is_there(cluster: Cluster) -> None:
    """A batch is refused while another one is on its way to the same partition.

    librdkafka 2.16 takes the answer to the second one for proof that the first was written.
    """
    producer = Producer({"bootstrap.servers": cluster.bootstrap}, delivery_timeout=WITHIN)
    assert await producer.send([Message("jobs", None, b"zeroth")]) == []  # it is connected
    cluster.answer_after(ROUND_TRIP_MS)
    cluster.refuse_next(NOT_LEADER)
    first = producer.start([Message("jobs", None, b"first")])
    await asyncio.sleep(ROUND_TRIP_MS / 3000)  # it is on its way
    second = producer.start([Message("jobs", None, b"second")])
    while first.left or second.left:
        producer.poll()
        await asyncio.sleep(0.01)
    there = written(cluster)
    assert second.state(0) is True
    assert b"second" in there
    assert (first.state(0) is True) == (b"first" in there)
    producer.close()
