"""The fetcher goes on asking the broker, whatever coincides."""

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.structs import TopicPartition

from streams.fetcher import Fetcher
from tests.unit.test_fetcher_records import batch

FULL, QUIET = TopicPartition("jobs.reports", 0), TopicPartition("jobs.reports", 1)


class Broker:
    """A broker that answers when it is told to, and keeps of which partitions it was asked for more."""

    def __init__(self) -> None:
        self.asked: list[set[int]] = []
        self._answer: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._metadata_max_age_ms = 300_000
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: 0)

    async def send(self, node_id: int, request: Any) -> Any:
        self.asked.append({one[0] for _, partitions in request.topics for one in partitions})
        self._answer = self._loop.create_future()
        return await self._answer

    def answer(self, *partitions: int) -> None:
        """Answer with one record of each of these partitions."""
        assert self._answer is not None
        found = [(one, 0, 1, 1, None, batch(0, [None])) for one in partitions]
        self._answer.set_result(SimpleNamespace(API_VERSION=4, topics=[("jobs.reports", found)]))


async def turns(count: int = 20) -> None:
    """Let the loop go round: all that only has to wait for its turn gets it."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_asks_again_when_an_answer_comes_as_the_last_that_was_fetched_is_taken() -> None:
    positions = SubscriptionState()
    positions.assign_from_user({FULL, QUIET})
    assignment = positions.subscription.assignment
    for partition in (FULL, QUIET):
        assignment.state_value(partition).reset_to(0)
    broker = Broker()
    fetcher = Fetcher(broker, positions)
    fetcher._prefetch_backoff = 0  # asks for the others at once
    try:
        await turns()
        broker.answer(0)
        await turns()
        assert broker.asked == [{0, 1}, {1}]
        assert await fetcher.fetched_records([FULL])
        broker.answer()
        await turns()
        assert broker.asked == [{0, 1}, {1}, {0, 1}]
    finally:
        await fetcher.close()
