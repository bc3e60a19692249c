"""What the broker's own account of its topics is taken for."""

from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.broker import Broker
from streams.settings import load_settings
from streams.topics import expected

SETTINGS = load_settings(_env_file=None, kafka_replication=3, kafka_min_insync=2)


@dataclass
class Partition:
    leader: int
    isrs: list[int]


@dataclass
class Topic:
    partitions: dict[int, Partition]


class Admin:
    """Knows every topic, as an admin client does."""

    def __init__(self) -> None:
        self.down = False
        self.topics = {one.name: Topic({0: Partition(1, [1, 2, 3])}) for one in expected(SETTINGS)}

    def list_topics(self, timeout: float) -> "Admin":
        if self.down:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return self


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def broker(admin: Admin) -> Any:
    broker: Any = Broker(SETTINGS)
    broker.__dict__["_admin"] = admin
    return broker


async def test_all_is_well_while_a_replica_may_be_missed(admin: Admin, broker: Broker) -> None:
    assert await broker.trouble() is None
    admin.topics["jobs.emails"].partitions[0].isrs.pop()
    assert await broker.trouble() is None


async def test_silence_is_told(admin: Admin, broker: Broker) -> None:
    admin.down = True
    assert "Kafka does not answer" in str(await broker.trouble())


@pytest.mark.parametrize("partition", [Partition(-1, [1, 2, 3]), Partition(1, [1])])
async def test_a_partition_that_takes_no_records_is_named(
    admin: Admin, broker: Broker, partition: Partition
) -> None:
    admin.topics["jobs.emails"].partitions[4] = partition
    assert "jobs.emails/4" in str(await broker.trouble())


async def test_a_missing_topic_is_named(admin: Admin, broker: Broker) -> None:
    del admin.topics["jobs.emails.dlt"]
    assert await broker.trouble() == "Kafka has no topic jobs.emails.dlt"
