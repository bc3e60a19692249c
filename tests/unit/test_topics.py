"""Which topics there should be, and what differs from them."""

from concurrent.futures import Future
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.errors import ConfigError
from streams.queues import QUEUES, RETRY_DELAYS
from streams.settings import load_settings
from streams.topics import Topic, differences, expected

SETTINGS = load_settings(_env_file=None, kafka_partitions=4)
SECOND = timedelta(seconds=1)


class FakeAdmin:
    """A broker with the topics that are expected, as a test changed them."""

    def __init__(self, topics: list[Topic]) -> None:
        self.partitions = {one.name: one.partitions for one in topics}
        self.configs = {one.name: dict(one.config) for one in topics}
        self.away = False

    def list_topics(self, timeout: float) -> Any:
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        return SimpleNamespace(
            topics={
                name: SimpleNamespace(partitions=dict.fromkeys(range(count)))
                for name, count in self.partitions.items()
            }
        )

    def describe_configs(self, resources: list[Any], request_timeout: float) -> Any:
        futures: dict[Any, Future[Any]] = {}
        for resource in resources:
            future = futures[resource] = Future()
            future.set_result(
                {key: SimpleNamespace(value=value) for key, value in self.configs[resource.name].items()}
            )
        return futures


@pytest.fixture
def admin() -> Any:
    return FakeAdmin(expected(SETTINGS))


def found(admin: Any) -> list[str]:
    return [
        f"{one} {'mendable' if one.fixable else 'for good'}"
        for one in differences(admin, expected(SETTINGS), SECOND)
    ]


def test_there_are_nine_queues_their_dead_letters_seven_delays_and_two_for_tracking() -> None:
    topics = {one.name: one for one in expected(SETTINGS)}
    assert len(topics) == 27
    assert {queue.topic for queue in QUEUES.values()} <= set(topics)
    for name in RETRY_DELAYS:
        assert topics[name].config["message.timestamp.type"] == "LogAppendTime"
    for queue in QUEUES.values():
        here, dead = topics[queue.topic], topics[queue.dead_letter_topic]
        assert int(dead.config["max.message.bytes"]) > int(here.config["max.message.bytes"]) > 1024 * 1024
        assert here.config["retention.ms"] == str(14 * 86_400_000)
        assert here.partitions == 4


def test_every_topic_that_jobs_travel_takes_what_a_queue_takes() -> None:
    sizes = {one.name: int(one.config["max.message.bytes"]) for one in expected(SETTINGS)}
    largest = max(sizes[queue.topic] for queue in QUEUES.values())
    assert all(sizes[name] >= largest for name in RETRY_DELAYS)
    assert all(sizes[queue.dead_letter_topic] >= largest for queue in QUEUES.values())


def test_what_is_as_it_should_be_has_no_difference(admin: Any) -> None:
    assert found(admin) == []


def test_each_difference_is_a_sentence_and_only_a_shrink_is_for_good(admin: Any) -> None:
    del admin.partitions["jobs.emails"]
    admin.partitions["jobs.reports"] = 2
    admin.partitions["jobs.critical"] = 9
    admin.configs["jobs.retry.1s"]["message.timestamp.type"] = "CreateTime"
    del admin.configs["jobs.webhooks"]["retention.ms"]
    assert sorted(found(admin)) == [
        "jobs.critical: partitions should be 4, is 9 for good",
        "jobs.emails: topic should be there, is missing mendable",
        "jobs.reports: partitions should be 4, is 2 mendable",
        "jobs.retry.1s: message.timestamp.type should be LogAppendTime, is CreateTime mendable",
        "jobs.webhooks: retention.ms should be 1209600000, is None mendable",
    ]


def test_no_broker_is_a_sentence(admin: Any) -> None:
    admin.away = True
    with pytest.raises(ConfigError, match="Kafka did not answer within 1 s"):
        differences(admin, expected(SETTINGS), SECOND)
