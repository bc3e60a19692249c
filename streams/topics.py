"""Every topic the pipeline needs: create what is missing, and say what differs from what was asked for."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from streams.errors import ConfigError
from streams.queues import LIFECYCLE_TOPIC, QUEUES, RETRY_DELAYS, TRACKING_DEAD_LETTER_TOPIC
from streams.settings import Settings

_RECORD_BYTES = 1024 * 1024 + 32 * 1024
"""A job of at most 1 MiB, its headers, and those that carrying it on adds."""

_CARRIED_BYTES = 2 * 1024 * 1024
"""A dead letter has more headers than the record that was refused for its own, and must always fit."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing about a topic that is not as it should be; `fixable` says whether `ensure` mends it."""

    topic: str
    what: str
    expected: str
    found: str
    fixable: bool

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} should be {self.expected}, is {self.found}"


def expected(settings: Settings) -> list[Topic]:
    """Return the nine queues, their dead letters, seven retry topics, lifecycle, and tracking's dead letters."""

    def topic(name: str, retention: timedelta, size: int, **config: str) -> Topic:
        return Topic(
            name,
            settings.kafka_partitions,
            settings.kafka_replication,
            {
                "retention.ms": str(int(retention.total_seconds() * 1000)),
                "min.insync.replicas": str(settings.kafka_min_insync),
                "max.message.bytes": str(size),
                **config,
            },
        )

    topics = [topic(queue.topic, settings.jobs_retention, _RECORD_BYTES) for queue in QUEUES.values()]
    topics += [
        # The broker's clock, so that a producer with a wrong one can make no retry early or late.
        topic(name, settings.jobs_retention, _CARRIED_BYTES, **{"message.timestamp.type": "LogAppendTime"})
        for name in RETRY_DELAYS
    ]
    topics += [
        topic(queue.dead_letter_topic, settings.dead_letter_retention, _CARRIED_BYTES)
        for queue in QUEUES.values()
    ]
    topics.append(topic(LIFECYCLE_TOPIC, settings.lifecycle_retention, _RECORD_BYTES))
    topics.append(topic(TRACKING_DEAD_LETTER_TOPIC, settings.dead_letter_retention, _CARRIED_BYTES))
    return topics


def differences(admin: AdminClient, topics: Iterable[Topic], timeout: timedelta) -> list[Difference]:
    """Compare the broker's topics with those expected; raises ConfigError when the broker does not answer."""
    seconds = timeout.total_seconds()
    wanted = list(topics)
    try:
        existing = admin.list_topics(timeout=seconds).topics
        present = [topic for topic in wanted if topic.name in existing]
        resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in present]
        described = admin.describe_configs(resources, request_timeout=seconds) if resources else {}
        configs = {
            resource.name: {name: entry.value for name, entry in future.result().items()}
            for resource, future in described.items()
        }
    except KafkaException as error:
        raise ConfigError(f"Kafka did not answer within {seconds:g} s: {error.args[0].str()}") from error
    found = [
        Difference(topic.name, "topic", "there", "missing", True) for topic in wanted if topic not in present
    ]
    for topic in present:
        partitions = len(existing[topic.name].partitions)
        if partitions != topic.partitions:
            fixable = partitions < topic.partitions
            found.append(
                Difference(topic.name, "partitions", str(topic.partitions), str(partitions), fixable)
            )
        for name, value in topic.config.items():
            actual = configs[topic.name].get(name)
            if actual != value:
                found.append(Difference(topic.name, name, value, str(actual), True))
    return found


def ensure(settings: Settings) -> list[Difference]:
    """Create and mend topics, and return what was different before.

    Raises ConfigError, with nothing changed, when a topic would have to shrink: Kafka cannot, and organizations
    would move to other partitions.
    """
    admin = AdminClient({**settings.kafka, "log_level": 2})
    topics = {topic.name: topic for topic in expected(settings)}
    found = differences(admin, topics.values(), settings.kafka_start_timeout)
    refused = [str(difference) for difference in found if not difference.fixable]
    if refused:
        raise ConfigError(f"topics cannot shrink; nothing was changed: {'; '.join(refused)}")
    missing = [topics[one.topic] for one in found if one.what == "topic"]
    grown = [topics[one.topic] for one in found if one.what == "partitions"]
    changed = {one.topic for one in found if one.what not in ("topic", "partitions")}
    try:
        if missing:
            new = [
                NewTopic(one.name, one.partitions, one.replication, config=dict(one.config))
                for one in missing
            ]
            for future in admin.create_topics(new).values():
                future.result()
        if grown:
            for future in admin.create_partitions(
                [NewPartitions(one.name, one.partitions) for one in grown]
            ).values():
                future.result()
        if changed:
            resources = [
                ConfigResource(
                    ResourceType.TOPIC,
                    name,
                    incremental_configs=[
                        ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                        for key, value in topics[name].config.items()
                    ],
                )
                for name in changed
            ]
            for future in admin.incremental_alter_configs(resources).values():
                future.result()
    except KafkaException as error:
        raise ConfigError(f"Kafka refused to change the topics: {error.args[0].str()}") from error
    if found:
        _await_changes(admin, list(topics.values()), settings.kafka_start_timeout)
    return found


def _await_changes(admin: AdminClient, topics: Sequence[Topic], timeout: timedelta) -> None:
    """Wait until the broker, which learns of changes from the controller, shows them, and partitions have leaders."""
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        left = [str(difference) for difference in differences(admin, topics, timeout)]
        existing = admin.list_topics(timeout=timeout.total_seconds()).topics
        left += [
            f"{one.name}: no leader"
            for one in topics
            if one.name in existing and any(at.leader < 0 for at in existing[one.name].partitions.values())
        ]
        if not left:
            return
        if time.monotonic() > deadline:
            raise ConfigError(
                f"topics were changed, and {timeout.total_seconds():g} s later there is: {'; '.join(left)}"
            )
        time.sleep(0.05)


async def verify(settings: Settings) -> None:
    """Raise ConfigError, in one sentence, unless every topic is as the settings say."""
    admin = AdminClient({**settings.kafka, "log_level": 2})
    found = await asyncio.to_thread(differences, admin, expected(settings), settings.kafka_start_timeout)
    if found:
        shown = "; ".join(str(difference) for difference in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConfigError(f"topics are not as they should be ({shown}{more}); run: streams topics ensure")
