"""Who watches the topics while a fault lasts: what was told, and which positions were committed."""

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas import files
from schemas.codec import Codec
from streams.consuming import Consumed, consumed
from streams.queues import LIFECYCLE_TOPIC
from tests.chaos.history import Place, Told

FINAL = frozenset({"completed", "dead", "cancelled"})


class Listener(threading.Thread):
    """Reads the lifecycle topic as it grows, past every outage."""

    def __init__(self, kafka: dict[str, Any], partitions: int) -> None:
        super().__init__(name="listener", daemon=True)
        self.told: list[Told] = []
        self.ended: set[str] = set()
        """The ids of the jobs that have come to an end."""
        self.kinds: Counter[str] = Counter()
        self.raw: list[bytes] = []
        self.ends_per_second: Counter[int] = Counter()
        """How many ends were told in each second since the epoch."""
        self._codec = Codec(files.current(files.LIFECYCLE))
        self._kafka = kafka
        self._partitions = partitions
        self._next = dict.fromkeys(range(partitions), 0)
        self._enough = threading.Event()

    def run(self) -> None:
        consumer = Consumer(
            {
                **self._kafka,
                "group.id": "chaos-listener",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "fetch.min.bytes": 64 * 1024,
                "log_level": 2,
            }
        )
        consumer.assign([TopicPartition(LIFECYCLE_TOPIC, number, 0) for number in self._next])
        while not self._enough.is_set():
            try:
                for record in consumed(consumer.consume(1_000, 0.1)):
                    assert isinstance(record, Consumed)
                    self._take(record)
            except KafkaException:  # an outage: librdkafka comes back to the same place by itself
                continue
        consumer.close()

    def _take(self, record: Consumed) -> None:
        if record.offset < self._next[record.partition]:
            return
        self._next[record.partition] = record.offset + 1
        event = self._codec.decode(record.value or b"")
        one = Told(
            job_id=event["jobId"],
            kind=event["kind"],
            attempt=event["attempt"],
            snoozes=event["snoozes"],
            replay=event["replayId"] or "",
            written=record.timestamp_ms / 1000,
            worker=event["workerId"] or "",
            at=event["at"].timestamp(),
            deferred=event["notBefore"] is not None and event["notBefore"] > event["at"],
            reason=(event["error"] or {}).get("message") or event["reason"] or "",
        )
        self.raw.append(record.value or b"")
        self.told.append(one)
        self.kinds[one.kind] += 1
        if one.kind in FINAL:
            if one.job_id not in self.ended:
                self.ends_per_second[int(one.written)] += 1
            self.ended.add(one.job_id)

    def read(self) -> int:
        """Return how many events were read."""
        return sum(self._next.values())

    def close(self) -> None:
        self._enough.set()
        self.join()


class Committed:
    """Asks for a group's committed positions without being a member."""

    def __init__(self, kafka: dict[str, Any], group: str, topics: Iterable[str], partitions: int) -> None:
        # A consumer, not an admin client: librdkafka 2.16 crashes when it lists a group's offsets while the
        # group's coordinator changes.
        self._consumer = Consumer({**kafka, "group.id": group, "enable.auto.commit": False, "log_level": 2})
        self._wanted = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]
        self._lock = threading.Lock()

    def __call__(self) -> dict[Place, int]:
        """Return the positions there are; raises KafkaException when the broker does not tell."""
        with self._lock:
            found = self._consumer.committed(self._wanted, timeout=2)
        return {
            (one.topic, one.partition): one.offset
            for one in found
            if one.error is None and one.offset is not None and one.offset >= 0
        }

    def close(self) -> None:
        with self._lock:
            self._consumer.close()
