"""Drop what the store says and read it again: Postgres = fold(lifecycle topic)."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tracking.sink import Sink
from tracking.store import Store


def rebuild(store: Store, sink: Sink, kafka: Mapping[str, Any], topic: str) -> int:
    """Empty the tables, read the topic from its beginning to where it ends now, return the records read.

    Sinks that are running are fenced, begin again with the rest and share the work. Jobs whose events have
    left the topic by retention are gone afterwards.
    """
    ranges = ranges_of(kafka, topic)
    store.reset(topic)

    def reached() -> bool:
        positions = store.positions(topic)
        return all(positions.get(partition, 0) >= end for partition, (_, end) in ranges.items())

    sink.run(reached)
    return sum(end - start for start, end in ranges.values())


def ranges_of(kafka: Mapping[str, Any], topic: str) -> dict[int, tuple[int, int]]:
    """Return the first and the next offset of each partition that holds records."""
    consumer = Consumer({**kafka, "group.id": "tracking-rebuild", "enable.auto.commit": False})
    try:
        metadata = consumer.list_topics(topic, timeout=10).topics[topic]
        found = {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            for partition in metadata.partitions
        }
        return {partition: (start, end) for partition, (start, end) in found.items() if end > start}
    finally:
        consumer.close()
