"""A simulated worker process: the real `Worker`, with a mirror of what `streams.transport` does around it.

Faust itself cannot run in a simulated loop. So the order of the calls that its consumer makes is repeated here,
line for line where it matters: `_fetch`, `read_again`, `_hand_in`, `wait_empty`, `_hand_over`, `_seek_to_committed`,
`commit` and `_moved` are the methods of `streams.transport.Consumer` of those names, and a change there is made here,
too.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from streams.delivery import EPOCH
from streams.offsets import PartitionOffsets
from streams.pipeline import AT_ONCE
from streams.producer import Message
from streams.queues import RETRY_DELAYS
from streams.refill import NotReadBack
from streams.retry import goes_on_at, next_topic
from streams.settings import Settings
from streams.transport import HANDING, Committed
from streams.worker import Partition, Worker
from tests.simulation.broker import WORLD_BEGINS, Broker, CommitFailed, Group, SimulatedProducer, Stored
from tests.simulation.ledger import Connection
from tests.simulation.loop import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

COMMIT_SECONDS = 0.2
HEARTBEAT_SECONDS = 0.5
FETCH_SECONDS = 1.0
FETCH_SECONDS_WHEN_FULL = 0.1
FORWARD_SECONDS = 0.25
POLL_RECORDS = 500


class LogReader:
    """Reads what was skipped from the logs."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def read(self, topic: str, partition: int, first_offset: int, count: int) -> list[Stored]:
        await self._broker.slowly()
        if not self._broker.healthy:
            raise NotReadBack("the broker is away")
        records = self._broker.log(Partition(topic, partition)).since(first_offset, count)
        return [record for record in records if record.offset < first_offset + count]

    async def start(self, topic: str, partition: int) -> int:
        return 0


class Member:
    """One worker process from its start to its end."""

    def __init__(self, process: Process, world: "World", settings: Settings) -> None:
        self.process = process
        self.settings = settings
        self.ahead = timedelta(0)
        """What is wrong with its wall clock."""
        self.jumped_back = timedelta(0)
        """By how much its clock was set back, in all."""
        self.ahead_by_jumps = timedelta(0)
        self.ended = False
        self.failed: BaseException | None = None
        self._world = world
        self._broker: Broker = world.broker
        self._group: Group = world.group
        self.connection = Connection(world.redis, process)
        self.producer = SimulatedProducer(world.broker, world.chance, process)
        self.forwarder = Forwarder(self, world)
        self.generation = 0
        self._assigned: dict[Partition, int] = {}
        """Partition to the position of the fetching consumer."""
        self._committed: dict[Partition, Committed] = {}
        self._handing = Counter[str]()
        """How many records of a topic are on their way to its agent."""
        self._turns: defaultdict[Partition, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._commit_lock = asyncio.Lock()
        self._flow = False
        self._stopping = False
        self._left = False
        self._handed_over = False

    def clock(self) -> datetime:
        """Return the time by this machine's wall clock."""
        return EPOCH + timedelta(seconds=WORLD_BEGINS + self.process.loop.time()) + self.ahead

    def jump(self, by: timedelta) -> None:
        """Set the wall clock."""
        self.ahead += by
        self.ahead_by_jumps += by
        self.jumped_back += max(-by, timedelta(0))

    def assigned(self) -> set[Partition]:
        return set(self._assigned)

    # -- life --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, as a process does when it is started."""
        self.process.run(self._begin)

    def _begin(self) -> None:
        self.worker = Worker(
            "primary",
            self.settings,
            codecs=self._world.codecs,
            lifecycle_codec=self._world.events_codec,
            admission=self.connection,
            producer=self.producer,
            reader=LogReader(self._broker),
            clock=self.clock,
        )
        self.worker.start()
        for work in (
            self._membership(),
            self._fetching(),
            self._committing(),
            self._watch(),
            self.forwarder.run(),
        ):
            self._world.spawn(self.process, work)

    async def _watch(self) -> None:
        self.failed = await self.worker.failure
        await self.stop()

    async def stop(self) -> None:
        """Leave in good order, as at SIGTERM or when a duty has failed; the process then ends."""
        if self._stopping:
            return
        self._stopping = True
        await self.wait_empty()
        await self._group.leave(self.process.name)
        self.forwarder.stopping = True
        await self.worker.close()
        self.ended = True
        self.process.kill()

    # -- the group ---------------------------------------------------------------------------------------

    async def _membership(self) -> None:
        name = self.process.name
        while not self._stopping:
            self.generation, share = await self._group.join(name)
            if self._stopping:
                return
            self.worker.assign(share)
            self._committed.clear()
            self._assigned = self._seek_to_committed(share)
            self._flow = True
            while await self._group.heartbeat(name, self.generation):  # noqa: ASYNC110
                await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._stopping:
                # As streams.coordinator: it leaves instead of joining again.
                if not self._handed_over:
                    await self._hand_over(self.settings.revoke_grace)
                await self._group.leave(name)
                return
            # As App._on_partitions_revoked: stop the flow, clear the agents' queues, wait until all is handed over.
            self._flow = False
            await self.wait_empty()
            self._assigned = {}

    def _seek_to_committed(self, share: Iterable[Partition]) -> dict[Partition, int]:
        found = {partition: self._group.committed(partition) for partition in share}
        for partition, (position, metadata) in found.items():
            if (offsets := self.worker.offsets(partition)) is not None:
                offsets.restore(position, metadata)
        return {partition: position for partition, (position, _) in found.items()}

    async def wait_empty(self) -> None:
        if self._left:
            return
        grace = self.settings.revoke_grace
        if self._stopping:
            self._left = True
            grace = self.settings.shutdown_grace
            await self.worker.stop_admitting()
        await self._hand_over(grace)
        self.worker.forget()
        self._handed_over = self._left

    async def _hand_over(self, grace: timedelta) -> None:
        if self.worker.failure.done():
            grace = timedelta(0)
        await self.worker.hand_over(grace)
        await self.commit()

    # -- records in --------------------------------------------------------------------------------------

    async def _fetching(self) -> None:
        while not self._stopping:
            await self._fetch()

    async def _fetch(self) -> None:
        if not self._flow:
            await asyncio.sleep(FETCH_SECONDS_WHEN_FULL)
            return
        active = set(self._assigned)
        with_room = {
            one for one in active if self._handing[one.topic] < HANDING and self.worker.has_room(one)
        }
        if not with_room:
            await asyncio.sleep(FETCH_SECONDS_WHEN_FULL)
            return
        tracked = {one: self.worker.offsets(one) for one in with_room}
        timeout = FETCH_SECONDS if with_room == active else FETCH_SECONDS_WHEN_FULL
        records = await self._getmany(with_room, timeout)
        strange = {
            one: batch[0].offset
            for one, batch in records.items()
            if not self._flow or not self.same(tracked[one], self.worker.offsets(one))
        }
        for one, batch in records.items():
            offsets = tracked[one]
            if one not in strange and offsets is not None:
                self._handing[one.topic] += len(batch)
                self._world.spawn(self.process, self._hand_in(one, batch, offsets))
        if strange:
            await asyncio.sleep(0)
            self.read_again(strange)

    async def _getmany(self, wanted: set[Partition], wait_seconds: float) -> dict[Partition, list[Stored]]:
        """Return what was fetched of the present assignment, whose positions are behind it from then on.

        As aiokafka's, it may wait through a rebalance, and another may come before what it returns is looked at.
        """

        def positions() -> dict[Partition, int]:
            return {one: at for one, at in self._assigned.items() if one in wanted}

        await self._broker.arrival(positions, wait_seconds)
        records = self._broker.read(positions(), POLL_RECORDS)
        for partition, batch in records.items():
            self._assigned[partition] = batch[-1].offset + 1
        await self._broker.slowly()
        return records

    @staticmethod
    def same(before: PartitionOffsets | None, now: PartitionOffsets | None) -> bool:
        """Return whether a partition has the assignment that it had."""
        return before is now

    def read_again(self, first: Mapping[Partition, int]) -> None:
        """Go back to what was fetched and not handed in."""
        for partition, offset in first.items():
            if offset < self._assigned.get(partition, 0):
                self._assigned[partition] = offset

    async def _hand_in(self, partition: Partition, batch: list[Stored], offsets: PartitionOffsets) -> None:
        await asyncio.sleep(0)  # the way through the agent's queue, which a rebalance clears
        async with self._turns[partition]:
            await self._take(partition, batch, offsets)
        self._handing[partition.topic] -= len(batch)

    async def _take(self, partition: Partition, batch: list[Stored], offsets: PartitionOffsets) -> None:
        for start in range(0, len(batch), AT_ONCE):
            if not self.same(offsets, self.worker.offsets(partition)):
                return
            if not self._flow:
                self.read_again({partition: batch[0].offset})
                return
            piece = batch[start : start + AT_ONCE]
            self._world.read(self.process, piece)
            self.worker.take(partition, piece)
            await self.worker.pipelines[partition.topic].give_way()

    # -- positions out -----------------------------------------------------------------------------------

    async def _committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            await self.commit()

    async def commit(self) -> bool:
        async with self._commit_lock:
            return await self._commit_moved()

    async def _commit_moved(self) -> bool:
        moved = self._moved()
        if not moved:
            return False
        committed = {partition: Committed.of(offsets) for partition, offsets in moved.items()}
        try:
            await self._group.commit(
                self.process.name,
                self.generation,
                {partition: one.position or 0 for partition, one in committed.items()},
                {partition: offsets.metadata() for partition, offsets in moved.items()},
            )
        except CommitFailed:
            return False
        self._committed.update(committed)
        return True

    def _moved(self) -> Mapping[Partition, PartitionOffsets]:
        return {
            partition: offsets
            for partition in self.worker.positions()
            if partition in self._assigned
            and (offsets := self.worker.offsets(partition)) is not None
            and Committed.of(offsets) != self._committed.get(partition)
        }


class Forwarder:
    """The retry forwarder's loop around `goes_on_at` and `next_topic`; every worker process has one.

    Their group shares the retry topics: here, whoever is alive and first takes a batch of one partition.
    """

    def __init__(self, member: Member, world: "World") -> None:
        self.stopping = False
        self.die_before_commit = False
        self._member = member
        self._world = world
        self._producer = SimulatedProducer(world.broker, world.chance, member.process)

    async def run(self) -> None:
        """Forward what is due until the process ends."""
        broker = self._world.broker
        partitions = [
            Partition(topic, number) for topic in RETRY_DELAYS for number in range(broker.partitions)
        ]
        while not self.stopping:
            await asyncio.sleep(FORWARD_SECONDS)
            if not self._world.forwards(self._member.process):
                continue
            for partition in partitions:
                at = broker.forwarded.get(partition, 0)
                if broker.healthy and broker.log(partition).end > at:
                    await self._forward(partition, at)

    async def _forward(self, partition: Partition, at: int) -> None:
        broker = self._world.broker
        now = self._member.clock()
        messages: list[Message] = []
        position = at
        for record in broker.log(partition).since(at, POLL_RECORDS):
            if goes_on_at(record.topic, record.timestamp) > now:
                break
            topic = next_topic(record.facts, now)
            assert topic is not None
            messages.append(Message(topic, record.key, record.value, list(record.headers)))
            position = record.offset + 1
        if not messages:
            return
        await self._producer.send(messages)
        if self.die_before_commit:
            self._member.process.kill()
            await asyncio.sleep(0)
        broker.forwarded[partition] = max(position, broker.forwarded.get(partition, 0))
