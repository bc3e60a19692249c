"""A batch on its way to an agent while Faust empties its queues: it is let go of, and read again."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.offsets import PartitionOffsets
from streams.transport import HANDING, Batch, Consumer, Transport
from streams.worker import Partition

HERE = Partition("jobs.webhooks", 0)


class Thread:
    """Stands for the thread of aiokafka's consumer, and keeps what is asked of it."""

    def __init__(self) -> None:
        self.read_again: list[Mapping[TP, int]] = []

    def _ensure_consumer(self) -> None:
        return None

    async def call_thread(self, call: Any, consumer: None, first: Mapping[TP, int]) -> None:
        self.read_again.append(first)


class Flow:
    """A consumer that flows, and a queue with nobody behind it."""

    def __init__(self) -> None:
        app: Any = faust.App("test", broker="kafka://nowhere", store="memory://")
        self.app = app
        self.offsets = PartitionOffsets(*HERE)
        app.worker = SimpleNamespace(offsets=lambda partition: self.offsets, has_room=lambda partition: True)
        nothing: Any = lambda *_: None  # noqa: E731
        transport: Any = Transport(app.conf.broker_consumer, app)
        self.consumer: Any = Consumer(transport, nothing, nothing, nothing)
        self.consumer._thread.thread_loop.close()
        self.thread = Thread()
        setattr(self.consumer, "_thread", self.thread)  # noqa: B010
        self.queue = app.FlowControlQueue(maxsize=10, clear_on_resume=True)
        app.topics._topic_name_index[HERE.topic] = [SimpleNamespace(queue=self.queue)]
        app.flow_control.resume()
        self.consumer.resume_flow()

    def hand_in(self, offset: int = 7, count: int = 1) -> Batch:
        """Hand in a batch of so many records, as far as it goes."""
        records: Any = [SimpleNamespace(offset=offset + number) for number in range(count)]
        batch = Batch(HERE, records, self.offsets, asyncio.Event())
        self.consumer._hand_in(batch)
        assert not self.queue.empty()
        return batch

    async def resume(self) -> None:
        """Do as Faust does when an assignment begins to be read."""
        await self.consumer.perform_seek()
        self.app.flow_control.resume()
        self.consumer.resume_flow()


@pytest.fixture
async def flow(monkeypatch: pytest.MonkeyPatch) -> Flow:
    async def sought(consumer: Any) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(driver.Consumer, "perform_seek", sought)
    return Flow()


async def test_what_an_emptied_queue_takes_along_is_read_again(flow: Flow) -> None:
    flow.hand_in()
    await flow.resume()
    assert flow.queue.empty()
    await flow.consumer._let_go()
    assert flow.thread.read_again == [{TP(*HERE): 7}]


async def test_what_its_agent_took_is_not(flow: Flow) -> None:
    flow.hand_in().take()
    await flow.resume()
    await flow.consumer._let_go()
    assert flow.thread.read_again == []


async def test_what_belongs_to_an_assignment_that_is_gone_is_not(flow: Flow) -> None:
    flow.hand_in()
    flow.offsets = PartitionOffsets(*HERE)
    await flow.resume()
    await flow.consumer._let_go()
    assert flow.thread.read_again == []


async def test_of_several_of_a_partition_it_is_read_again_from_the_first_that_was_not_taken(
    flow: Flow,
) -> None:
    flow.hand_in(5).take()
    flow.hand_in(7)
    flow.hand_in(9)
    await flow.resume()
    await flow.consumer._let_go()
    assert flow.thread.read_again == [{TP(*HERE): 7}]
    assert flow.consumer._handing == []


async def test_a_batch_that_nobody_takes_is_no_progress(flow: Flow) -> None:
    batch = flow.hand_in()
    before = flow.consumer.rounds
    await flow.consumer._let_go()
    assert flow.consumer.rounds == before
    batch.take()
    await flow.consumer._let_go()
    await flow.consumer._let_go()
    assert flow.consumer.rounds == before + 2


async def test_no_more_of_a_topic_is_fetched_while_much_of_it_is_on_its_way(flow: Flow) -> None:
    asked: list[set[TP]] = []

    async def getmany(partitions: set[TP], timeout: float) -> dict[TP, list[Any]]:
        asked.append(partitions)
        return {}

    flow.consumer._getmany = getmany
    active, elsewhere = {TP(*HERE)}, TP("jobs.elsewhere", 0)
    flow.consumer._get_active_partitions = lambda: active
    flow.hand_in()
    await flow.consumer._fetch()
    assert asked == [{TP(*HERE)}]
    batch = flow.hand_in(8, HANDING)
    await flow.consumer._fetch()
    assert len(asked) == 1
    active.add(elsewhere)
    await flow.consumer._fetch()
    assert asked[1:] == [{elsewhere}], "what is on its way to one queue is in no other's way"
    batch.take()
    await flow.consumer._fetch()
    assert asked[2:] == [active]


async def test_it_flows_again_afterwards(flow: Flow) -> None:
    await flow.resume()
    assert flow.consumer.flow_active
    assert not flow.consumer.suspend_flow.is_set()


@pytest.mark.parametrize("stops", [True, False])
async def test_being_stopped_is_no_crash_even_amid_a_rebalance(flow: Flow, stops: bool) -> None:
    flow.consumer.stop_flow()
    draining = asyncio.create_task(flow.consumer._drain_messages(SimpleNamespace(should_stop=False)))
    await asyncio.sleep(0)
    if stops:
        flow.app._stopped.set()
    draining.cancel()
    await asyncio.wait([draining], timeout=5)
    assert draining.cancelled() is not stops


async def test_no_partition_is_looked_at_for_acknowledgements(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assignment() -> None:
        raise AssertionError("looked at")

    monkeypatch.setattr(flow.consumer, "assignment", assignment)
    await flow.consumer.verify_all_partitions_active()
