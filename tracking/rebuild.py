"""Drop what the store says and read it again: Postgres = fold(lifecycle topic)."""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from tracking.database import TrackingError
from tracking.sink import Sink
from tracking.store import Store


class EventsGone(TrackingError):
    """The topic no longer begins with its first event, so reading it again would lose jobs."""


class RebuildStopped(TrackingError):
    """The sink was stopped on the way; what it has not read yet is not in the store."""


def rebuild(store: Store, sink: Sink, kafka: Mapping[str, Any], topic: str, *, lossy: bool = False) -> int:
    """Empty the tables, read the topic from its beginning to where it ends now, return the records read.

    Sinks that are running are fenced, begin again and share the work. Raises EventsGone, with nothing
    changed, when retention has cut the topic short, unless that is accepted.
    """
    ranges = ranges_of(kafka, topic)
    cut = [str(partition) for partition, (start, _) in ranges.items() if start > 0]
    if cut and not lossy:
        raise EventsGone(f"retention has removed the first events of partition {', '.join(cut)} of {topic}")
    store.reset(topic)

    def reached() -> bool:
        positions = store.positions(topic)
        return all(
            positions.get(partition, 0) >= end for partition, (start, end) in ranges.items() if end > start
        )

    sink.run(reached)
    if not reached():
        raise RebuildStopped("stopped before the end of the topic; `streams tracking` reads the rest")
    return sum(end - start for start, end in ranges.values())


def ranges_of(kafka: Mapping[str, Any], topic: str) -> dict[int, tuple[int, int]]:
    """Return the first and the next offset of each partition that ever held records."""
    consumer = Consumer({**kafka, "group.id": "tracking-rebuild", "enable.auto.commit": False})
    try:
        metadata = consumer.list_topics(topic, timeout=10).topics[topic]
        found = {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            for partition in metadata.partitions
        }
        return {partition: (start, end) for partition, (start, end) in found.items() if end > 0}
    finally:
        consumer.close()
