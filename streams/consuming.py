"""Records as plain confluent-kafka consumers read them, with the types that they always have."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from schemas.headers import headers_of


@dataclass(frozen=True, slots=True)
class Consumed:
    """A record, and where it is."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    def at(self, step: int = 0) -> TopicPartition:
        """Return this place, or the one `step` offsets on, for a consumer."""
        return TopicPartition(self.topic, self.partition, self.offset + step)


@dataclass(frozen=True, slots=True)
class End:
    """A partition was read to its end."""

    topic: str
    partition: int


def consumed(messages: Iterable[Message]) -> Iterator[Consumed | End]:
    """Yield what a consumer returned; raises KafkaException for an error that is not the end of a partition."""
    for message in messages:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        assert topic is not None
        assert partition is not None
        if error is not None:
            yield End(topic, partition)
            continue
        assert offset is not None
        key, value = message.key(), message.value()
        yield Consumed(
            topic,
            partition,
            offset,
            message.timestamp()[1],
            key.encode() if isinstance(key, str) else key,
            value.encode() if isinstance(value, str) else value,
            {name: data for name, data in headers_of(message) if data is not None},
        )
