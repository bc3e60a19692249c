"""Where records go that will never be events: the tracking dead-letter topic."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas.headers import headers_of


class DeadLetters:
    """Writes records to a topic with their key, bytes and headers unchanged, plus `reason` and `origin`."""

    def __init__(
        self, kafka: Mapping[str, Any], topic: str, *, timeout: timedelta = timedelta(seconds=15)
    ) -> None:
        self._kafka = dict(kafka)
        self._topic = topic
        self._timeout = timeout
        self._producer: Producer | None = None

    def send(self, letters: Iterable[tuple[Message, str]]) -> None:
        """Write records, each with its reason, and return once all in-sync replicas have them.

        Raises KafkaException otherwise. Some may have arrived then: sending again may write them twice.
        """
        producer = self._open()
        problems: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                problems.append(error)

        for message, reason in letters:
            headers: list[tuple[str, str | bytes | None]] = [
                *headers_of(message),
                ("reason", reason.encode("utf-8", "replace")),
                ("origin", f"{message.topic()}/{message.partition()}/{message.offset()}".encode()),
            ]
            producer.produce(
                self._topic, message.value(), message.key(), headers=headers, on_delivery=delivered
            )
        if producer.flush(self._timeout.total_seconds()) > 0:
            raise KafkaException(KafkaError(KafkaError._MSG_TIMED_OUT))
        if problems:
            raise KafkaException(problems[0])

    def _open(self) -> Producer:
        # Seldom needed, so opened when it is: a producer has threads and connections of its own.
        if self._producer is None:
            self._producer = Producer(
                {
                    **self._kafka,
                    "enable.idempotence": True,
                    "delivery.timeout.ms": int(self._timeout.total_seconds() * 1000),
                }
            )
        return self._producer
