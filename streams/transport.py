"""The one module that knows Faust's insides: record batches in, positions out.

Faust 0.15.3 loses jobs when its own acknowledgements are used: it commits past a record that is still worked
on, acknowledges a record whose handler raised and drops what it cannot decode. So its consumer is replaced
where records and positions cross: `_drain_messages` hands whole batches of one partition to the agent of their
topic, and `commit` commits what `streams.worker.Worker` says is settled. Membership, rebalances, the fetching
thread, the CLI and the shutdown stay Faust's. Each fact this relies on has a test in tests/contract.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple, cast

from aiokafka.consumer import consumer as aiokafka_consumer
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.errors import KafkaError, OffsetMetadataTooLargeError
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.coordinator import Coordinator
from streams.fetcher import Fetcher, ReadableRecords
from streams.offsets import PartitionOffsets
from streams.worker import Partition, Worker

log = logging.getLogger(__name__)

FETCH_SECONDS = 1.0
FETCH_SECONDS_WHEN_FULL = 0.01
"""How soon room is looked for while a partition has none; a window of quick jobs is drained in a tenth of a second."""

HANDING = 1_000
"""While so many records of a topic are on their way to its agent no more of it are taken from the fetcher."""


aiokafka_fetcher.MemoryRecords = ReadableRecords
aiokafka_consumer.Fetcher = Fetcher
aiokafka_consumer.GroupCoordinator = Coordinator


class Batch:
    """Records of one partition on their way to the agent of its topic."""

    __slots__ = ("_changed", "dropped", "offsets", "partition", "records", "taken")

    def __init__(
        self,
        partition: Partition,
        records: Sequence[ConsumerRecord],
        offsets: PartitionOffsets,
        changed: asyncio.Event,
    ) -> None:
        self.partition = partition
        self.records = records
        self.offsets = offsets
        """Those of the assignment under which the records were read."""
        self.taken = False
        self.dropped = False
        """The flow was stopped before it was taken, and its queue may have been emptied."""
        self._changed = changed

    def take(self) -> None:
        """Note that all of it was taken."""
        self.taken = True
        self._changed.set()

    def drop(self) -> None:
        """Note that it may not get there."""
        self.dropped = True
        self._changed.set()


class Committed(NamedTuple):
    """How much of a partition the broker knows to be settled: all below a position, and so many beyond it."""

    position: int | None
    beyond: int

    @classmethod
    def of(cls, offsets: PartitionOffsets) -> "Committed":
        """Return how much is settled now."""
        return cls(offsets.position, offsets.settled)


class Consumer(driver.Consumer):
    """Faust's consumer with its acknowledgements taken out."""

    rounds = 0
    """How often the fetching loop has gone round with nothing on its way to an agent, or with something taken."""
    assignments = 0
    commits = 0
    _left = False
    _handed_over = False
    """Whether it has left, and what ran has ended or had its time."""
    _maps = True
    """Whether the broker takes metadata as long as these."""

    @cached_property
    def _handing(self) -> list[Batch]:
        """What is on its way to agents."""
        return []

    @cached_property
    def _changed(self) -> asyncio.Event:
        return asyncio.Event()

    @cached_property
    def _committed(self) -> dict[TP, Committed]:
        """What was committed of the present assignment."""
        return {}

    @cached_property
    def _committing(self) -> asyncio.Lock:
        return asyncio.Lock()

    @property
    def _coordinator(self) -> Coordinator:
        return cast(Coordinator, self._thread._ensure_consumer()._coordinator)

    @property
    def _worker(self) -> Worker:
        return cast(Worker, cast(Any, self.app).worker)

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self._fetch()
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            # Faust takes being stopped amid a rebalance for a crash, after which the group waits for this member in
            # vain until it has ended.
            if not self.app.should_stop:
                raise

    async def _fetch(self) -> None:
        await self._let_go()
        if not self.flow_active:
            await self.wait_first(self.can_resume_flow.wait(), self._stopped.wait())
            return
        active = set(self._get_active_partitions())
        handing = Counter[str]()
        for batch in self._handing:
            handing[batch.partition.topic] += len(batch.records)
        with_room = {
            tp
            for tp in active
            if handing[tp.topic] < HANDING and self._worker.has_room(Partition(tp.topic, tp.partition))
        }
        if not with_room:
            await self._await_change()
            return
        tracked = {tp: self._worker.offsets(Partition(*tp)) for tp in with_room}
        timeout = FETCH_SECONDS if with_room == active else FETCH_SECONDS_WHEN_FULL
        records = await self._getmany(with_room, timeout)
        # The call may have waited through a rebalance and bring what was read of the new assignment, whose
        # position is beyond it by now.
        strange = {
            tp: batch[0].offset
            for tp, batch in records.items()
            if not self.flow_active or tracked[tp] is not self._worker.offsets(Partition(*tp))
        }
        # Of what is as urgent the least first: a flood keeps those waiting who share its partition, and nobody else.
        for tp in sorted(records, key=lambda tp: (self._worker.urgency(tp.topic), len(records[tp]))):
            offsets = tracked[tp]
            if tp not in strange and offsets is not None:
                self._hand_in(Batch(Partition(*tp), records[tp], offsets, self._changed))
        if strange:
            await self._thread.call_thread(self._read_again, self._thread._ensure_consumer(), strange)

    @staticmethod
    async def _read_again(consumer: Any, first: Mapping[TP, int]) -> None:
        """Let what was read from these offsets on, and was not handed in, be read again.

        Never forward: what was read of an assignment that is gone lies before or behind the position of the new one,
        which starts from what was committed.
        """
        assignment = consumer._subscription.subscription.assignment
        for tp, offset in first.items():
            state = None if assignment is None else assignment.state_value(tp)
            if state is not None and state.has_valid_position and offset < state.position:
                consumer.seek(TopicPartition(*tp), offset)

    def _hand_in(self, batch: Batch) -> None:
        self._handing.append(batch)
        for channel in cast(Any, self.app.topics)._topic_name_index[batch.partition.topic]:
            channel.queue.put_nowait(batch)

    async def _let_go(self) -> None:
        """Forget what was taken, and let be read again what was dropped before it was."""
        first: dict[TP, int] = {}
        gone = [one for one in self._handing if one.taken or one.dropped]
        if gone or not self._handing:
            self.rounds += 1
        for batch in gone:
            self._handing.remove(batch)
            # A queue that is emptied takes the batch along. A new assignment reads it again by itself.
            if not batch.taken and self._worker.offsets(batch.partition) is batch.offsets:
                first.setdefault(TP(*batch.partition), batch.records[0].offset)
        if first:
            await self._thread.call_thread(self._read_again, self._thread._ensure_consumer(), first)

    async def _await_change(self) -> None:
        """Wait until a batch was taken, and not for long, as there may be room elsewhere."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(FETCH_SECONDS_WHEN_FULL):
                await self._changed.wait()

    def stop_flow(self) -> None:
        """Read no more, and let go of what is being handed in."""
        super().stop_flow()
        for batch in self._handing:
            batch.drop()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go back to what was committed, and know what was settled beyond it."""
        found = await self._thread.call_thread(self._seek_to_committed, self._thread._ensure_consumer())
        for tp, (position, metadata) in found.items():
            offsets = self._worker.offsets(Partition(*tp))
            if offsets is None or position < 0:
                continue
            try:
                offsets.restore(position, metadata)
            except ValueError as error:
                log.warning("what is settled beyond %s of %s/%s cannot be read: %s", position, *tp, error)
        # None for what has no position is what Faust expects, whatever it declares.
        return cast(
            Mapping[TP, int],
            {TP(*tp): position if position >= 0 else None for tp, (position, _) in found.items()},
        )

    @staticmethod
    async def _seek_to_committed(consumer: Any) -> Mapping[TopicPartition, OffsetAndMetadata]:
        partitions = consumer._subscription.assigned_partitions()
        found = await consumer._coordinator.fetch_committed_offsets(list(partitions))
        for tp, (position, _) in found.items():
            if position > 0:
                consumer.seek(tp, position)
        return cast(Mapping[TopicPartition, OffsetAndMetadata], found)

    async def perform_seek(self) -> None:
        """Go back to what was committed, with the flow stopped; Faust resumes it afterwards.

        It empties its queues then, and the flow may not have stopped before: not when nothing was assigned, nor when
        the rebalance before this one was still being resumed from.
        """
        self.stop_flow()
        await super().perform_seek()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self._committed.clear()
        if not self._left:
            self._worker.assign(Partition(tp.topic, tp.partition) for tp in assigned)
        await super().on_partitions_assigned(assigned, generation_id)
        self.assignments += 1

    @property
    def flows(self) -> bool:
        """Return whether the last rebalance has ended, so that what is assigned is read."""
        return self.assignments > 0 and self.flow_active and not self.app.rebalancing

    @property
    def behind(self) -> bool:
        """Return whether there are positions to commit."""
        return self.flows and bool(self._moved())

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        if self.app.should_stop:
            # Faust would close the connection here, while the positions of this shutdown are not committed yet.
            if not self._handed_over:
                await self._hand_over(cast(Any, self.app).settings.revoke_grace)
            return
        await super().on_partitions_revoked(revoked)

    async def wait_empty(self) -> None:
        """Hand over: Faust calls this before partitions are revoked and when the app stops."""
        if self._left or self._thread._consumer is None:  # it was told to stop before it had begun
            return
        settings = cast(Any, self.app).settings
        grace: timedelta = settings.revoke_grace
        if self.app.should_stop:
            self._left = True
            # Others get the partitions as soon as they ask for some, and not when what runs has ended.
            self._coordinator.depart()
            grace = settings.shutdown_grace
            await self._worker.stop_admitting()
        await self._hand_over(grace)
        self._worker.forget()
        self._handed_over = self._left

    async def _hand_over(self, grace: timedelta) -> None:
        if self._worker.failure.done():
            grace = timedelta(0)  # nothing settles any more
        await self._worker.hand_over(grace)
        await self.commit()

    async def leave(self) -> None:
        """Hand over all partitions and leave the group for good; what runs goes on, and ends in the ledger."""
        while self.app.rebalancing:  # noqa: ASYNC110 - Faust tells nobody when that ends
            await asyncio.sleep(FETCH_SECONDS_WHEN_FULL)
        self.stop_flow()
        await self._worker.stop_admitting()
        await self.wait_empty()
        self._left = True
        await self._thread.call_thread(self._thread._ensure_consumer().unsubscribe)
        # The fetching loop goes round, with nothing to fetch: the worker is well.
        self.resume_flow()

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit the positions that moved; a failure is told and made up for by the next commit."""
        # One at a time: of two on their way, the earlier one might arrive last and set positions back.
        async with self._committing:
            return await self._commit_moved()

    async def _commit_moved(self) -> bool:
        moved = self._moved()
        # Who is no member any more commits nothing: whoever reads it again has it from the ledger.
        if not moved or not self._coordinator.is_member:
            return False
        consumer = self._thread._ensure_consumer()
        committed = {tp: Committed.of(offsets) for tp, offsets in moved.items()}
        try:
            await self._thread.call_thread(
                consumer.commit,
                {
                    TopicPartition(*tp): OffsetAndMetadata(offsets.position, self._metadata(offsets))
                    for tp, offsets in moved.items()
                },
            )
        except OffsetMetadataTooLargeError:
            log.warning(
                "the broker takes no map of what is settled beyond a position: that is read again after a crash"
            )
            self._maps = False
            return await self._commit_moved()
        except KafkaError as error:
            log.warning("positions were not committed, what they cover may be read again: %r", error)
            return False
        self._committed_offset.update({tp: one.position for tp, one in committed.items()})
        self._committed.update(committed)
        self.commits += 1
        return True

    def _metadata(self, offsets: PartitionOffsets) -> str:
        return offsets.metadata() if self._maps else ""

    def _moved(self) -> Mapping[TP, PartitionOffsets]:
        """Return the partitions of whose settled records the broker does not know all."""
        assignment = self.assignment()
        return {
            tp: offsets
            for partition, position in self._worker.positions().items()
            if (tp := TP(partition.topic, partition.number)) in assignment
            and (offsets := self._worker.offsets(partition)) is not None
            and position >= (self._committed_offset[tp] or 0)
            and Committed.of(offsets) != self._committed.get(tp)
        }

    async def verify_all_partitions_active(self) -> None:
        """Leave out Faust's search for stalled streams: it looks at acknowledgements that are not used."""


class Transport(driver.Transport):
    """Faust's Kafka transport with that consumer."""

    Consumer = Consumer
