"""What was skipped is read back from the real broker, and only what is really gone counts as gone."""

import asyncio
from collections import Counter

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL, RETRY_DELAYS
from streams.refill import KafkaReader, NotReadBack
from tests.handlers import Work
from tests.processes import Pipeline

pytestmark = pytest.mark.stack


async def test_it_reads_what_is_there_wherever_it_was_before(pipeline: Pipeline) -> None:
    producer = Producer({**pipeline.settings.kafka, "partitioner": "murmur2_random"})
    for number in range(1200):
        producer.produce(CRITICAL.topic, b"%d" % number, b"acme", headers={"number": b"%d" % number})
    assert producer.flush(20) == 0
    (partition,) = {one.partition for one in pipeline.records(CRITICAL.topic)}
    reader = KafkaReader(pipeline.settings)
    try:
        for first, count in ((0, 500), (500, 500), (1000, 200), (100, 1), (700, 500), (0, 3)):
            records = await reader.read(CRITICAL.topic, partition, first, count)
            assert [one.offset for one in records] == [*range(first, first + count)]
            assert all(one.value == b"%d" % one.offset for one in records)
            assert all(dict(one.headers) == {"number": b"%d" % one.offset} for one in records)
            assert {(one.topic, one.partition, one.key) for one in records} == {
                (CRITICAL.topic, partition, b"acme")
            }
        admin = AdminClient(pipeline.settings.kafka)
        deleted = admin.delete_records([TopicPartition(CRITICAL.topic, partition, 600)])
        assert all(future.result(20) for future in deleted.values())
        assert await reader.start(CRITICAL.topic, partition) == 600
        records = await reader.read(CRITICAL.topic, partition, 500, 200)
        assert [one.offset for one in records] == [*range(600, 700)]
        assert await reader.read(CRITICAL.topic, partition, 0, 100) == []
    finally:
        await reader.close()
    with pytest.raises(NotReadBack):
        await reader.read(CRITICAL.topic, partition, 700, 1)


async def test_it_need_not_wait_where_it_has_read_ahead(pipeline: Pipeline) -> None:
    """librdkafka by itself lets a second pass before it fills up again a queue that was full."""
    producer, per_key, pieces = Producer({**pipeline.settings.kafka, "linger.ms": 5}), 12_000, 24
    for number in range(2 * per_key):
        producer.produce(CRITICAL.topic, b"%1000d" % number, partition=number % 2)
    assert producer.flush(20) == 0
    reader, size = KafkaReader(pipeline.settings), per_key // pieces
    try:
        await reader.read(CRITICAL.topic, 0, 0, 1)
        async with asyncio.timeout(pieces / 3):  # it takes one second, and more than eight with such waits
            for piece in range(pieces):
                for partition in (0, 1):
                    records = await reader.read(CRITICAL.topic, partition, piece * size, size)
                    assert len(records) == size
    finally:
        await reader.close()


def test_a_flood_runs_once_writes_nothing_and_lets_a_quiet_organization_pass_through_a_kill(
    pipeline: Pipeline,
) -> None:
    options = {"WINDOW_RECORDS": "200", "WORKER_CONCURRENCY": "4", "LEASE": "3s"}
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish_many([Publication(Work(number=number, work_ms=10), "flood") for number in range(2500)])
        quiet = jobs.publish(Work(number=-1), organization_id="quiet")
    first = pipeline.worker(**options).start()
    pipeline.wait_for("completed", 300)
    assert quiet in {one["jobId"] for one in pipeline.events() if one["kind"] == "completed"}
    first.kill()
    pipeline.worker(**options).start()
    pipeline.wait_for("completed", 2501)
    ended = Counter(one["jobId"] for one in pipeline.events() if one["kind"] == "completed")
    assert len(ended) == 2501
    assert sum(ended.values()) <= 2501 + 50, "what ran when the worker was killed may be told twice"
    assert [record for topic in RETRY_DELAYS for record in pipeline.records(topic)] == []
