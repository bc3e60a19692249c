"""Is the broker there, and can every partition be written to?"""

import asyncio
from datetime import timedelta
from functools import cached_property

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.settings import Settings
from streams.topics import expected

ANSWERS_WITHIN = timedelta(seconds=2)


class Broker:
    """A connection of its own to ask over: those that the worker uses may be what stands still."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = {topic.name for topic in expected(settings)}

    async def trouble(self) -> str | None:
        """Return what is wrong, in words, or None; takes ANSWERS_WITHIN at most."""
        try:
            async with asyncio.timeout(2 * ANSWERS_WITHIN.total_seconds()):
                return await asyncio.to_thread(self._ask)
        except TimeoutError:
            return "Kafka could not be asked in time"

    @cached_property
    def _admin(self) -> AdminClient:
        # Seldom needed, so opened when it is: it has threads and connections.
        return AdminClient({**self._settings.kafka, "log_level": 2})

    def _ask(self) -> str | None:
        try:
            found = self._admin.list_topics(timeout=ANSWERS_WITHIN.total_seconds()).topics
        except KafkaException as error:
            return f"Kafka does not answer: {error.args[0].str()}"
        for name in sorted(self._topics):
            if name not in found:
                return f"Kafka has no topic {name}"
            for number, one in sorted(found[name].partitions.items()):
                if one.leader < 0 or len(one.isrs) < self._settings.kafka_min_insync:
                    return f"Kafka cannot take records for {name}/{number}: too few of its replicas are there"
        return None
