"""One worker: the pipelines of its queues, what they share, and how it takes on and hands over partitions.

Plain asyncio: Faust hands records in and fetches positions out (`streams.transport`), and is known nowhere else.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import psutil

from ratelimit import Admission, AdmissionUnavailable
from ratelimit.backlog import Backlog
from ratelimit.control import Control, Listener
from ratelimit.local import LocalLimits, Refuses
from schemas.codec import Codec
from streams.answers import questions_to
from streams.clock import Clock
from streams.delivery import Record
from streams.duties import Duties, Duty
from streams.execution import Execution
from streams.lifecycle import Lifecycle
from streams.limits import DeliveryLimits
from streams.live import LiveWorkers
from streams.offsets import PartitionOffsets
from streams.operators import Operators
from streams.pipeline import AT_ONCE, Pipeline
from streams.producer import Producer
from streams.publication import FollowUps, Publisher
from streams.quarantine import Quarantine
from streams.queues import WorkerType, queues_of
from streams.refill import Reader
from streams.routing import Routing
from streams.settings import Settings
from streams.settle import Settlement
from streams.window import Window

log = logging.getLogger(__name__)

FLUSH = timedelta(milliseconds=100)
HOUSEKEEPING = timedelta(seconds=1)

LISTENING = timedelta(milliseconds=500)
HELD_UP_FROM = 50
"""What waits and may not run steps aside once so many records behind it are settled."""


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int


class Worker:
    """Runs the jobs of one worker type's queues, given the records of their partitions."""

    def __init__(
        self,
        worker_type: WorkerType,
        settings: Settings,
        *,
        codecs: Mapping[str, Codec],
        lifecycle_codec: Codec,
        admission: Admission,
        producer: Producer,
        reader: Reader,
        clock: Callable[[], datetime],
        control: Control | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        self.type = worker_type
        self._settings = settings
        self._codecs = {queue.name: codecs[queue.name] for queue in queues_of(worker_type)}
        self._admission = admission
        self._producer = producer
        self.clock = Clock(clock)
        self._control = control
        self._backlog = backlog
        self._listener = Listener(control, clock=self.clock) if control else None
        self._hears, self._clock_is_wrong = True, False
        self.operators = Operators()
        self.limits = DeliveryLimits()
        self.live = LiveWorkers(worker_type, settings.worker_id, admission)
        self._questions = questions_to(self, self.live.name, control)
        self._local = LocalLimits(self.clock)
        lifecycle = Lifecycle(lifecycle_codec, worker_id=settings.worker_id, host=socket.gethostname())
        self._execution = Execution(process_count=settings.process_count, modules=settings.handler_modules)
        self.settlement = Settlement(
            producer=producer,
            admission=admission,
            routing=Routing(
                lifecycle,
                FollowUps(Publisher(codecs, Lifecycle(lifecycle_codec))),
                unknown_schema_delay=settings.unknown_schema_delay,
                unknown_schema_limit=settings.unknown_schema_limit,
            ),
            clock=self.clock,
            snooze_limit=settings.snooze_limit,
            lost=lambda delivery: self.pipelines[delivery.queue.topic].ask_again(delivery),
            released=lambda delivery: self.pipelines[delivery.queue.topic].released(delivery),
            freed=self._place_freed,
            closed={one.name for one in queues_of(worker_type) if settings.policy(one) == "closed"},
            rules=self.limits.rules,
            backlog=backlog,
        )
        quarantine = Quarantine()
        self.pipelines = {
            queue.topic: Pipeline(
                queue,
                codec=codecs[queue.name],
                admission=admission,
                execution=self._execution,
                settlement=self.settlement,
                lifecycle=lifecycle,
                window=Window(
                    records=settings.window_records,
                    size_bytes=settings.window_bytes,
                    slots=settings.concurrency(queue),
                    weights=partial(self.limits.rules.weight, configured=settings.organization_weights),
                    fair=settings.fair_lanes,
                ),
                reader=reader,
                operators=self.operators,
                limits=self.limits,
                local=self._refuses,
                on_redis_down=settings.policy(queue),
                quarantine=quarantine,
                concurrency=settings.concurrency(queue),
                lease=settings.lease,
                clock=self.clock,
            )
            for queue in queues_of(worker_type)
        }
        self._offsets: dict[Partition, PartitionOffsets] = {}
        self._duties = Duties()
        self.failure = self._duties.failure
        self._admitting: list[Duty] = []
        self._settling: Duty | None = None

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(self.pipelines)

    def start(self) -> None:
        """Begin to run what is handed in."""
        for pipeline in self.pipelines.values():
            self._admitting.append(self._duties.begin(pipeline.admit(), f"admit {pipeline.queue.name}"))
            self._duties.begin(pipeline.runs.run(), f"run {pipeline.queue.name}")
            self._duties.begin(pipeline.unbegun.run(), f"cancel {pipeline.queue.name}")
            self._duties.begin(pipeline.refill.run(), f"refill {pipeline.queue.name}")
        self._settling = self._duties.begin(self.settlement.run(), "settle")
        self._duties.begin(self._tell(), "tell")
        self._duties.begin(self._renew(), "renew leases")
        self._duties.begin(self.live.run(), "say it lives")
        self._duties.begin(self.limits.pushing(self._admission), "push limits")
        if self._listener is not None:
            self._duties.begin(self._listen(), "listen")
        self._duties.begin(self._keep_house(), "keep house")

    def _refuses(self) -> Refuses:
        """Return what refuses jobs beyond this worker's share of limits, while Redis is away."""
        running = [
            (one.identity, one.limits)
            for pipeline in self.pipelines.values()
            for one in pipeline.runs.unfinished()
        ]
        return self._local.beside(running, self.live.sharing)

    def _place_freed(self) -> None:
        for pipeline in self.pipelines.values():
            pipeline.place_freed()

    # -- records in, positions out ----------------------------------------------------------------------

    def offsets(self, partition: Partition) -> PartitionOffsets | None:
        """Return what is known of a partition under its present assignment, None while it is nobody's or another's."""
        return self._offsets.get(partition)

    def has_room(self, partition: Partition) -> bool:
        """Return whether records of a partition may be handed in: its queue goes on, and there is room for them."""
        offsets = self._offsets.get(partition)
        return (
            offsets is not None
            and not offsets.gone
            and offsets.has_room(self._settings.window_span)
            and self.pipelines[partition.topic].has_room
            and not self.settlement.full
        )

    def take(self, partition: Partition, records: Iterable[Record]) -> None:
        """Take the records of a partition, in the order of their offsets."""
        offsets = self._offsets.get(partition)
        if offsets is not None and not offsets.gone:
            self.pipelines[partition.topic].take(records, offsets)

    def urgency(self, topic: str) -> int:
        """Return the priority of a topic's queue; 1 is the most urgent."""
        return self.pipelines[topic].queue.priority

    async def take_all(
        self, partition: Partition, records: Sequence[Record], offsets: PartitionOffsets
    ) -> None:
        """Take the records of a partition piece by piece, so that what is more urgent gets its turns between.

        `offsets` are those it had when they were read: after a rebalance they are read again.
        """
        pipeline = self.pipelines[partition.topic]
        for start in range(0, len(records), AT_ONCE):
            if self._offsets.get(partition) is not offsets or offsets.gone:
                return
            pipeline.take(records[start : start + AT_ONCE], offsets)
            await pipeline.give_way()

    def positions(self) -> dict[Partition, int]:
        """Return the position of every partition on which something was settled."""
        return {
            partition: offsets.position
            for partition, offsets in self._offsets.items()
            if offsets.position is not None
        }

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Begin to track partitions; those that are tracked already go on."""
        for partition in partitions:
            if partition not in self._offsets and partition.topic in self.pipelines:
                self._offsets[partition] = PartitionOffsets(*partition)

    async def hand_over(self, grace: timedelta) -> None:
        """Give up what has not started and let what runs end within the grace; positions are then final."""
        parted = list(self._offsets.values())
        unstarted = [one for pipeline in self.pipelines.values() for one in pipeline.leave(parted)]
        await self.settlement.give_back(unstarted)
        try:
            async with asyncio.timeout(grace.total_seconds()):
                for pipeline in self.pipelines.values():
                    await pipeline.runs.idle()
                await self.settlement.settled()
        except TimeoutError:
            log.info("jobs that run on keep their leases; whoever reads them again waits for those")

    def forget(self) -> None:
        """Stop tracking every partition; what still runs settles in the ledger only, unless that one comes back."""
        for pipeline in self.pipelines.values():
            pipeline.runs.part()
        self._offsets.clear()

    # -- leaving ----------------------------------------------------------------------------------------

    async def stop_admitting(self) -> None:
        """Take and admit nothing more, and wait for the questions that are out."""
        for pipeline in self.pipelines.values():
            pipeline.stop()
        await asyncio.gather(*self._admitting, return_exceptions=True)

    async def close(self) -> None:
        """End what still runs, give its leases back, and let go of everything shared."""
        left = [one for pipeline in self.pipelines.values() for one in pipeline.runs.unfinished()]
        await self._duties.end(but=self._settling)
        await self._execution.close()
        # What has come to its end in the meantime must not run again.
        await self._duties.until(self.settlement.settled())
        await self._duties.end()
        # Neither a thread nor a handler that will not be cancelled ends before the process does: their leases
        # must outlive them.
        running = {one for pipeline in self.pipelines.values() for one in pipeline.runs.unfinished()}
        ended = [one for one in left if one.handler.runs_in != "thread" and one not in running]
        await self.settlement.give_back(ended)
        await self.live.leave()
        closing: list[Admission | Control | Backlog | None] = [self._admission, self._control, self._backlog]
        await asyncio.gather(*[one.close() for one in closing if one is not None])
        self._producer.close()

    # -- duties -----------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(FLUSH.total_seconds())
            self._execution.cancel_overdue()
            for pipeline in self.pipelines.values():
                pipeline.runs.tell()
            self._make_way()

    def _make_way(self) -> None:
        """Let no partition stop because of what waits: of held organizations at once, of others in time."""
        # What waits for an earlier one of its ordering key may be all that fits, and the earlier one come behind it.
        far = [one for one in self._offsets.values() if one.behind >= self._settings.window_span // 2]
        for topic, pipeline in self.pipelines.items():
            stuck = pipeline.is_stuck
            held_up = [
                offsets
                for partition, offsets in self._offsets.items()
                if partition.topic == topic
                and (offsets.held_back >= HELD_UP_FROM or (stuck and not self.has_room(partition)))
            ]
            if held_up or pipeline.window.surplus.is_choked:
                pipeline.make_way(held_up, far)

    async def hear(self) -> None:
        """Hear what operators said since the last time; while that cannot be asked, what is known holds."""
        if self._listener is None:
            return
        try:
            news = await self._listener.news()
        except AdmissionUnavailable as error:
            if self._hears:
                log.warning("operators are not heard for now: %s", error)
            self._hears, news = False, []
        else:
            self._hears = True
            self.live.hear(news)
        if self.operators.hear(news, self.clock()):
            for pipeline in self.pipelines.values():
                pipeline.obey()
        if self.limits.hear(news):
            for pipeline in self.pipelines.values():
                pipeline.limits_changed()
        await self._questions.hear(news)

    async def set_clock(self) -> None:
        """Put the worker's clock right by that of Redis; while that cannot be asked, it goes on as it was."""
        try:
            ahead = await self.clock.follow(self._admission.now)
        except AdmissionUnavailable:
            return
        if bool(ahead) != self._clock_is_wrong:
            self._clock_is_wrong = bool(ahead)
            log.warning(
                "this machine's clock is %.1f s ahead of that of Redis, which counts", ahead.total_seconds()
            )

    async def _listen(self) -> None:
        while True:
            await self.hear()
            await asyncio.sleep(LISTENING.total_seconds())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease.total_seconds() / 3)
            running = [one for pipeline in self.pipelines.values() for one in pipeline.runs.leased()]
            if not (leased := running + self.settlement.leased()):
                continue
            until = time.monotonic() + self._settings.lease.total_seconds()
            try:
                held = await self._admission.renew([one.lease() for one in leased])
            except AdmissionUnavailable as error:
                log.warning("%d leases were not renewed: %s", len(leased), error)
                continue
            for delivery, kept in zip(leased, held, strict=True):
                if kept:
                    delivery.leased_until = until
            # What has ended in the meantime needs its lease no more.
            for delivery in (one for one, kept in zip(running, held, strict=False) if not kept):
                if self.pipelines[delivery.queue.topic].runs.lose(delivery):
                    log.warning("the lease of %s was lost to another worker", delivery.identity)

    async def _keep_house(self) -> None:
        process = psutil.Process()
        while True:
            self.settlement.memory_bytes = process.memory_info().rss
            for pipeline in self.pipelines.values():
                pipeline.keep_house()
            await self.set_clock()
            if any(codec.missing for codec in self._codecs.values()):
                await asyncio.to_thread(self._refresh)
            await asyncio.sleep(HOUSEKEEPING.total_seconds())

    def _refresh(self) -> None:
        for codec in self._codecs.values():
            try:
                codec.refresh()
            except Exception as error:  # noqa: BLE001 - files or HTTP: the record waits, and so does the next look
                log.warning("a missing schema could not be looked up: %s", error)
