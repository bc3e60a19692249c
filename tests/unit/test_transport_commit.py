"""Commits carry what is settled beyond the positions, for as long as the broker takes that."""

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka.errors import OffsetMetadataTooLargeError, RequestTimedOutError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from streams.offset_map import METADATA_BOUND, settled_beyond
from streams.offsets import PartitionOffsets
from streams.transport import Consumer, Transport
from streams.worker import Partition

HERE = Partition("jobs.webhooks", 0)


class Broker:
    """Stands for aiokafka's consumer: takes commits, tells them, or fails."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, set[int]]] = []
        self.metadata_bound = 4096
        self.away = False
        self.is_member = True
        self.committed = OffsetAndMetadata(-1, "")
        self.sought: list[int] = []
        self._subscription = SimpleNamespace(assigned_partitions=lambda: {TopicPartition(*HERE)})
        self._coordinator = self

    async def commit(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        (committed,) = offsets.values()
        if self.away:
            raise RequestTimedOutError
        if len(committed.metadata) > self.metadata_bound:
            raise OffsetMetadataTooLargeError
        self.committed = committed
        self.commits.append((committed.offset, settled_beyond(committed.offset, committed.metadata)))

    async def fetch_committed_offsets(self, wanted: Any) -> Mapping[TopicPartition, OffsetAndMetadata]:
        return dict.fromkeys(wanted, self.committed)

    def seek(self, partition: TopicPartition, position: int) -> None:
        self.sought.append(position)


class Rig:
    """A consumer with one partition."""

    def __init__(self) -> None:
        app: Any = faust.App("test", broker="kafka://nowhere", store="memory://")
        self.offsets = PartitionOffsets(*HERE)
        app.worker = SimpleNamespace(
            offsets=lambda partition: self.offsets,
            positions=lambda: {} if self.offsets.position is None else {HERE: self.offsets.position},
        )
        nothing: Any = lambda *_: None  # noqa: E731
        transport: Any = Transport(app.conf.broker_consumer, app)
        self.consumer: Any = Consumer(transport, nothing, nothing, nothing)
        self.consumer._thread.thread_loop.close()
        self.broker = Broker()

        async def call_thread(call: Any, *arguments: Any) -> Any:
            return await call(*arguments)

        thread = SimpleNamespace(
            _consumer=self.broker, _ensure_consumer=lambda: self.broker, call_thread=call_thread
        )
        setattr(self.consumer, "_thread", thread)  # noqa: B010
        setattr(self.consumer, "assignment", lambda: {TP(*HERE)})  # noqa: B010

    def read(self, *numbers: int) -> list[int]:
        """Read records, and return those that are left to do."""
        return [one for one in numbers if self.offsets.read(one)]

    async def assign(self) -> None:
        """Begin the next assignment."""
        self.offsets = PartitionOffsets(*HERE)
        self.consumer._committed.clear()
        await self.consumer.perform_seek()


@pytest.fixture
async def rig() -> Rig:
    await asyncio.sleep(0)
    return Rig()


async def test_a_commit_follows_when_the_position_stands_still_and_more_is_settled_beyond(rig: Rig) -> None:
    rig.read(*range(6))
    rig.offsets.settle(2)
    assert await rig.consumer.commit()
    assert not await rig.consumer.commit(), "the broker knows all of it"
    rig.offsets.settle(4)
    assert await rig.consumer.commit()
    rig.offsets.settle(0)
    assert await rig.consumer.commit()
    assert rig.broker.commits == [(0, {2}), (0, {2, 4}), (1, {2, 4})]


async def test_the_next_assignment_knows_it(rig: Rig) -> None:
    rig.read(*range(6))
    rig.offsets.settle(0)
    rig.offsets.settle(2)
    await rig.consumer.commit()
    await rig.assign()
    assert rig.broker.sought == [1]
    assert rig.read(1, 2, 3) == [1, 3]


async def test_a_commit_that_fails_is_made_up_for(rig: Rig) -> None:
    rig.read(0, 1)
    rig.offsets.settle(1)
    rig.broker.away = True
    assert not await rig.consumer.commit()
    rig.broker.away = False
    assert await rig.consumer.commit()
    assert rig.broker.commits == [(0, {1})]


async def test_who_is_no_member_any_more_commits_nothing(rig: Rig) -> None:
    rig.read(0)
    rig.offsets.settle(0)
    rig.broker.is_member = False
    assert not await rig.consumer.commit()
    assert rig.broker.commits == []


async def test_a_consumer_that_stops_before_it_has_begun_hands_nothing_over(rig: Rig) -> None:
    rig.read(0)
    rig.offsets.settle(0)
    rig.consumer._thread._consumer = None
    await rig.consumer.wait_empty()
    assert rig.broker.commits == []


async def test_a_broker_that_takes_no_long_metadata_gets_the_positions_all_the_same(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.broker.metadata_bound = 1
    rig.read(*range(6))
    for offset in (0, 2):
        rig.offsets.settle(offset)
        await rig.consumer.commit()
    rig.offsets.settle(1)
    await rig.consumer.commit()
    assert rig.broker.commits == [(1, set()), (1, set()), (3, set())]
    assert caplog.text.count("takes no map") == 1


async def test_metadata_that_cannot_be_read_is_told_and_all_is_left_to_do(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.broker.committed = OffsetAndMetadata(1, "settled/1:%")
    await rig.assign()
    assert rig.read(1, 2, 3) == [1, 2, 3]
    assert "what is settled beyond 1 of jobs.webhooks/0 cannot be read" in caplog.text


async def test_a_partition_that_was_never_committed_is_read_from_its_start(rig: Rig) -> None:
    await rig.assign()
    assert rig.broker.sought == []
    assert rig.consumer._read_offset[TP(*HERE)] is None


async def test_no_more_is_sent_than_a_broker_takes(rig: Rig) -> None:
    rig.read(*range(20_000))
    for offset in range(1, 20_000, 2):
        rig.offsets.settle(offset)
    await rig.consumer.commit()
    assert len(rig.broker.committed.metadata) <= METADATA_BOUND
