"""The two clients: checked before anything leaves, and exact about what was accepted."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError

from streams.agents.emails import SendEmail
from streams.client import Jobs, SyncJobs
from streams.errors import InvalidJob, NotAccepted
from streams.producer import Message, Producer, Sending
from streams.publication import Publication
from streams.queues import LIFECYCLE_TOPIC
from streams.settings import load_settings

SETTINGS = load_settings(
    _env_file=None,
    kafka_bootstrap_servers="broker:1",
    publish_timeout=timedelta(seconds=0.2),
    publish_caps=False,
)


def mail(name: str) -> SendEmail:
    return SendEmail(template="welcome", to=[f"{name}@example.org"], variables={})


class Broker(Producer):
    """Answers each message as `answer` says: True, an error, or None for no answer at all."""

    def __init__(self, answer: Callable[[Message], KafkaError | bool | None]) -> None:
        self.answer = answer
        self.sent: list[Message] = []
        self.closed = False

    async def send_each(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        return self.send_blocking(messages, timeout)

    def send_blocking(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        sending = Sending(len(messages))
        for index, message in enumerate(messages):
            self.sent.append(message)
            answer = self.answer(message)
            if answer is not None:
                sending.reporter(index)(None if answer is True else answer, None)  # type: ignore[arg-type]
        return sending

    def close(self, timeout: timedelta = timedelta(0)) -> int:
        self.closed = True
        return 0


Publish = Callable[[Broker, list[Publication]], list[str]]


def synchronous(broker: Broker, publications: list[Publication]) -> list[str]:
    with SyncJobs(SETTINGS) as jobs:
        jobs._producer = broker
        return jobs.publish_many(publications)


def asynchronous(broker: Broker, publications: list[Publication]) -> list[str]:
    async def publish() -> list[str]:
        async with Jobs(SETTINGS) as jobs:
            jobs._producer = broker
            return await jobs.publish_many(publications)

    return asyncio.run(publish())


@pytest.fixture(params=[synchronous, asynchronous])
def publish(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_ids_come_back_in_order_and_the_connection_is_closed(publish: Publish) -> None:
    broker = Broker(lambda message: True)
    wanted = [Publication(mail(name), "acme", job_id=name) for name in ("c", "a", "b")]
    assert publish(broker, wanted) == ["c", "a", "b"]
    assert [message.topic for message in broker.sent] == ["jobs.emails"] * 3 + [LIFECYCLE_TOPIC] * 3
    assert broker.closed


def test_one_that_is_wrong_means_nothing_is_sent(publish: Publish) -> None:
    broker = Broker(lambda message: True)
    with pytest.raises(InvalidJob, match="priority"):
        publish(broker, [Publication(mail("a"), "acme"), Publication(mail("b"), "acme", priority=99)])
    assert broker.sent == []


def test_it_says_which_were_accepted_and_which_were_not(publish: Publish) -> None:
    answers: dict[bytes, KafkaError | bool | None] = {
        b"acme": True,
        b"globex": KafkaError(KafkaError._MSG_TIMED_OUT),
        b"initech": None,
    }
    broker = Broker(lambda message: True if message.topic == LIFECYCLE_TOPIC else answers[message.key or b""])
    wanted = [Publication(mail("a"), name.decode(), job_id=f"of-{name.decode()}") for name in answers]
    with pytest.raises(NotAccepted) as refused:
        publish(broker, wanted)
    assert refused.value.accepted == ("of-acme",)
    assert refused.value.unconfirmed == ("of-globex", "of-initech")
    assert "broker:1 accepted 1 of 3 jobs and did not confirm 2: " in str(refused.value)


def test_no_answer_at_all_ends_in_time_and_says_so(publish: Publish) -> None:
    with pytest.raises(NotAccepted, match=r"did not confirm 1: no answer within 0\.2 s"):
        publish(Broker(lambda message: None), [Publication(mail("a"), "acme")])


def test_a_job_is_accepted_though_its_event_is_not(publish: Publish) -> None:
    refused = KafkaError(KafkaError._MSG_TIMED_OUT)
    broker = Broker(lambda message: refused if message.topic == LIFECYCLE_TOPIC else True)
    assert publish(broker, [Publication(mail("a"), "acme", job_id="a")]) == ["a"]


def test_a_check_sends_nothing() -> None:
    broker = Broker(lambda message: True)
    with SyncJobs(SETTINGS) as jobs:
        jobs._producer = broker
        jobs.check(Publication(mail("a"), "acme"))
        with pytest.raises(InvalidJob, match="organization_id"):
            jobs.check(Publication(mail("a"), ""))
    assert broker.sent == []
