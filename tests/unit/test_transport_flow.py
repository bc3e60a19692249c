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
from streams.transport import Batch, Consumer, Transport
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
        app.worker = SimpleNamespace(offsets=lambda partition: self.offsets)
        nothing: Any = lambda *_: None  # noqa: E731
        transport: Any = Transport(app.conf.broker_consumer, app)
        self.consumer: Any = Consumer(transport, nothing, nothing, nothing)
        self.consumer._thread.thread_loop.close()
        self.thread = Thread()
        setattr(self.consumer, "_thread", self.thread)  # noqa: B010
        self.queue = app.FlowControlQueue(maxsize=1, clear_on_resume=True)
        app.topics._topic_name_index[HERE.topic] = [SimpleNamespace(put=self.queue.put)]
        app.flow_control.resume()
        self.consumer.resume_flow()

    async def hand_in(self) -> tuple[Batch, asyncio.Task[None]]:
        """Hand in a batch that begins at offset 7, as far as it goes."""
        record: Any = SimpleNamespace(offset=7)
        batch = Batch(HERE, [record], self.offsets)
        handing = asyncio.create_task(self.consumer._hand_in(batch))
        async with asyncio.timeout(5):
            while self.queue.empty():  # noqa: ASYNC110
                await asyncio.sleep(0)
        return batch, handing

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
    _, handing = await flow.hand_in()
    await flow.resume()
    assert flow.queue.empty()
    await asyncio.wait_for(handing, 5)
    assert flow.thread.read_again == [{TP(*HERE): 7}]


async def test_what_its_agent_took_is_not(flow: Flow) -> None:
    batch, handing = await flow.hand_in()
    batch.taken.set()
    await asyncio.wait_for(handing, 5)
    await flow.resume()
    assert flow.thread.read_again == []


async def test_what_belongs_to_an_assignment_that_is_gone_is_not(flow: Flow) -> None:
    _, handing = await flow.hand_in()
    flow.offsets = PartitionOffsets(*HERE)
    await flow.resume()
    await asyncio.wait_for(handing, 5)
    assert flow.thread.read_again == []


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
