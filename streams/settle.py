"""Make outcomes durable, in the order that loses nothing.

For a batch of outcomes: write retry and dead-letter records and lifecycle events and wait for the broker; then
mark the ledger; then settle the offsets. A crash in between repeats work and never loses it: the ledger and the
fence in it tell a repeated delivery from a new one.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ratelimit import Admission, AdmissionUnavailable, InLine, Mark, Released, Waiting, identity
from ratelimit.backlog import Backlog, Left
from streams.delivery import Delivery, Record
from streams.errors import InvalidRecord, StreamsError
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, Cancelled, DeadLetter, Failure, Outcome, Retry, Snoozed
from streams.producer import Message, Producer
from streams.queues import Queue
from streams.routing import Routing, carried_on, keeps_place
from streams.rules import Rules

log = logging.getLogger(__name__)

LEDGER_RETRY = timedelta(milliseconds=500)

UNSETTLED_BOUND = 4_000
"""How many outcomes may wait to be durable before nothing more is read: in an outage all that is read steps aside."""


class BrokerRefused(StreamsError):
    """The broker refused a record that must be written; the worker ends, and nothing it held is settled."""


@dataclass(slots=True)
class Ended:
    """An outcome on its way to being durable."""

    messages: list[Message]
    offsets: PartitionOffsets
    offset: int
    mark: Mark | None = None
    delivery: Delivery | None = None
    """Whose lease the mark is signed with."""
    ordered: Delivery | None = None
    """Whose place in the line of its ordering key is kept or left; None when it has none."""
    kept: tuple[InLine, datetime] | None = None
    """The place that it keeps, and when it is due; None when it keeps none."""
    is_kept: bool = False
    goes_on: bool = False
    """The job still runs, and those behind it wait."""
    left: Left | None = None
    """The job, when it may leave its organization's backlog; None when that has no cap."""


class Settlement:
    """Collects outcomes and makes them durable, a batch at a time, for all queues of one worker."""

    def __init__(
        self,
        *,
        producer: Producer,
        admission: Admission,
        routing: Routing,
        clock: Callable[[], datetime],
        snooze_limit: int,
        lost: Callable[[Delivery], None],
        released: Callable[[Delivery], None],
        freed: Callable[[], None],
        closed: Collection[str],
        rules: Rules,
        backlog: Backlog | None,
    ) -> None:
        self._producer = producer
        self._admission = admission
        self._routing = routing
        self._clock = clock
        self._snooze_limit = snooze_limit
        self._lost = lost
        self._released = released
        self._freed = freed
        self._closed = closed
        """Queues whose positions wait for the ledger."""
        self._rules = rules
        self._backlog = backlog
        self._ended: list[Ended] = []
        self._unmarked: list[Ended] = []
        self._settling: list[Ended] = []
        self._notes: list[Message] = []
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.rounds = 0
        """How many batches were dealt with, whatever became of them."""
        self.memory_bytes: int | None = None
        self.ended: defaultdict[tuple[str, type[Outcome]], int] = defaultdict(int)
        """How many outcomes were taken, by queue and kind."""

    def finish(
        self, delivery: Delivery, outcome: Outcome, attempt: Attempt, started_at: datetime | None
    ) -> None:
        """Take the outcome of an attempt; `started_at` is None when it did not begin."""
        at = self._clock()
        if isinstance(outcome, Snoozed) and delivery.snoozes >= self._snooze_limit:
            reason = f"snoozed {delivery.snoozes} times, last because: {outcome.reason}"
            outcome = DeadLetter(reason, Failure.named("SnoozeLimit", reason))
        messages, end = self._routing.of(delivery, outcome, attempt, started_at, at, self.memory_bytes)
        self.ended[delivery.queue.name, type(outcome)] += 1
        # What stepped aside before it was admitted has nothing to tell the ledger: the fence of its snooze will.
        unasked = started_at is None and not delivery.token and not isinstance(outcome, Cancelled)
        mark = None if unasked else Mark(delivery.identity, delivery.token, end, delivery.limits)
        ended = Ended(messages, delivery.offsets, delivery.offset, mark, delivery)
        if delivery.ordering_key is not None:
            ended.ordered = delivery
            if isinstance(end, Waiting) and isinstance(outcome, Retry | Snoozed) and keeps_place(delivery):
                ended.kept = replace(delivery.in_line, fence=end.fence), at + outcome.delay
        if self._rules.caps and not isinstance(outcome, Retry | Snoozed):
            ended.left = self._counted(delivery.organization_id, delivery.identity)
        self._add(ended)

    def postpone(
        self, delivery: Delivery, now: datetime, due: datetime, reason: str, *, goes_on: bool = False
    ) -> None:
        """Send a copy of a delivery to wait, and settle its record; this is told to nobody.

        For one whose organization has its share of the window already, and for one that would hold its partition's
        position back, perhaps as its job `goes_on` running: when the copy comes due, the ledger tells whether there
        is anything left to do. It keeps its place in the order of its key.
        """
        rank = delivery.rank if delivery.ordering_key is not None else None
        carried = carried_on(
            delivery, due - now, due, delivery.attempt, delivery.snoozes, reason=reason, rank=rank,
            copy=goes_on or delivery.is_copy,
        )  # fmt: skip
        ended = Ended([carried], delivery.offsets, delivery.offset, goes_on=goes_on)
        if delivery.ordering_key is not None:
            ended.ordered, ended.kept = delivery, (delivery.in_line, due)
        self._add(ended)

    def send_back(self, delivery: Delivery, now: datetime, due: datetime) -> None:
        """Send a copy of a delivery that came before its time to wait; a place that it has, it keeps."""
        rank = delivery.rank if "rank" in delivery.headers else None
        carried = carried_on(
            delivery, due - now, due, delivery.attempt, delivery.snoozes, reason="not due yet", rank=rank,
            copy=delivery.is_copy,
        )  # fmt: skip
        self._add(Ended([carried], delivery.offsets, delivery.offset))

    def drop(self, delivery: Delivery) -> None:
        """Settle a delivery that is spent: its job is finished, was taken over by a later one, or ran without lease."""
        ended = Ended([], delivery.offsets, delivery.offset)
        if delivery.token:
            spent = Waiting(delivery.fence() + "~")
            ended.mark, ended.delivery = (
                Mark(delivery.identity, delivery.token, spent, delivery.limits),
                delivery,
            )
        if delivery.ordering_key is not None:
            ended.ordered = delivery
        if self._rules.caps:
            ended.left = self._counted(delivery.organization_id, delivery.identity)
        self._add(ended)

    def refuse(self, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception) -> None:
        """Bury a record that breaks the wire format, its bytes and key unchanged."""
        ended = Ended(self._routing.refused(queue, record, error, self._clock()), offsets, record.offset)
        if self._rules.caps and isinstance(error, InvalidRecord) and (job := error.job) is not None:
            name = identity(job["organizationId"], job["idempotencyKey"] or job["jobId"])
            ended.left = self._counted(job["organizationId"], name)
        self._add(ended)

    def _counted(self, organization_id: str, name: str) -> Left | None:
        """Return a job that has ended as the backlog of its organization has it, if that has a cap."""
        return Left(organization_id, name) if self._rules.cap(organization_id) is not None else None

    def await_schema(self, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception) -> None:
        """Snooze a record whose schema this worker does not have yet; bury it when that lasts too long."""
        messages = self._routing.without_schema(queue, record, error, self._clock())
        self._add(Ended(messages, offsets, record.offset))

    async def give_back(self, unused: Iterable[Delivery]) -> None:
        """Give the leases of deliveries back unused; their records stay unsettled.

        At once: what waits for the broker must not keep them until they run out.
        """
        marks = [Mark(one.identity, one.token, Released(), one.limits) for one in unused if one.token]
        if not marks:
            return
        try:
            await self._admission.settle(marks)
        except AdmissionUnavailable as error:
            log.warning("%d leases were not given back and will run out: %s", len(marks), error)
        else:
            self._freed()

    def note(self, message: Message) -> None:
        """Write an event with the next batch; nothing waits for it."""
        self._notes.append(message)
        self._wake.set()

    def _add(self, ended: Ended) -> None:
        self._ended.append(ended)
        self._settled.clear()
        self._wake.set()

    async def run(self) -> None:
        """Settle batch after batch until cancelled; raises BrokerRefused."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._ended = self._ended, []
            notes, self._notes = self._notes, []
            if batch or notes or self._unmarked:
                await self._settle(batch, notes)
                self.rounds += 1
            if not self._ended and not self._unmarked:
                self._settled.set()

    @property
    def full(self) -> bool:
        """Return whether so much waits to be durable that nothing more should be taken."""
        return self.unsettled >= UNSETTLED_BOUND

    @property
    def unsettled(self) -> int:
        """Return how many outcomes wait to be durable."""
        return len(self._ended) + len(self._settling) + len(self._unmarked)

    @property
    def has_outcomes(self) -> bool:
        """Return whether something that was taken is not durable yet."""
        return not self._settled.is_set()

    async def settled(self) -> None:
        """Wait until everything that was taken is durable."""
        await self._settled.wait()

    def leased(self) -> list[Delivery]:
        """Return the deliveries that have ended and whose leases are still needed, until the ledger knows."""
        return [
            one.delivery
            for part in (self._unmarked, self._settling, self._ended)
            for one in part
            if one.delivery is not None and one.delivery.token
        ]

    async def _settle(self, batch: list[Ended], notes: list[Message]) -> None:
        batch = self._settling = await self._still_ours(batch)
        try:
            # Before there is a copy that comes back and leaves the place, lest the next of its key believes that it is
            # the first. As the place of what ran: nobody would leave that of a later delivery which is never written.
            await self._keep_in_line(batch, written=False)
        except AdmissionUnavailable as error:
            log.warning("places in lines will be kept when the ledger is told: %s", error)
        messages = notes + [message for ended in batch for message in ended.messages]
        if messages:
            errors = await self._producer.send(messages)
            if errors:
                raise BrokerRefused(f"{len(errors)} of {len(messages)} records: {errors[0].str()}")
        batch = self._settling = self._unmarked + batch
        self._unmarked = await self._mark([one for one in batch if one.mark or one.ordered or one.left])
        waiting = set(map(id, self._unmarked))
        for ended in batch:
            if id(ended) not in waiting:
                ended.offsets.settle(ended.offset)
                if ended.ordered is not None and not ended.goes_on:
                    self._released(ended.ordered)
        self._settling = []

    async def _keep_in_line(self, batch: list[Ended], *, written: bool) -> None:
        keeping = [
            (one, one.kept if written else (one.ordered.in_line, one.kept[1]))
            for one in batch
            if one.ordered is not None and one.kept is not None and not one.is_kept
        ]
        if keeping:
            await self._admission.keep_in_line([place for _, place in keeping])
            for ended, place in keeping:
                ended.is_kept = place == ended.kept

    async def _still_ours(self, batch: list[Ended]) -> list[Ended]:
        """Return the outcomes without those of leases that ran out and were taken over.

        A worker that was stopped for longer than its leases does not know it. Whoever holds them now says what
        becomes of those jobs; told here, their ends would be told twice.
        """
        now = time.monotonic()
        doubtful = {
            id(one): one.delivery for one in batch if one.delivery and one.delivery.leased_until < now
        }
        if not doubtful:
            return batch
        try:
            held = await self._admission.renew([one.lease() for one in doubtful.values()])
        except AdmissionUnavailable as error:
            log.warning("%d leases may be lost, which cannot be told: %s", len(doubtful), error)
            return batch
        lost = {key for key, kept in zip(doubtful, held, strict=True) if not kept}
        for key in lost:
            self._lost(doubtful[key])
        return [one for one in batch if id(one) not in lost]

    async def _mark(self, batch: list[Ended]) -> list[Ended]:
        """Tell the ledger how runs ended; returns those whose positions must wait until it can be told."""
        if not batch:
            return []
        marked = [one for one in batch if one.mark is not None]
        ordered = [one.ordered for one in batch if one.ordered is not None and one.kept is None]
        try:
            # Before the ledger knows of the later delivery, whose place it is from then on.
            await self._keep_in_line(batch, written=True)
            kept = await self._admission.settle([ended.mark for ended in marked if ended.mark])
            if self._backlog and (left := [one.left for one in batch if one.left]):
                await self._backlog.leave(left)
            if ordered:
                await self._admission.leave_lines([one.in_line for one in ordered])
        except AdmissionUnavailable as error:
            # Until the ledger has it, a redelivery would run again: positions wait for Redis, too. Other queues,
            # and what the broker must be told, do not.
            waiting = [
                one
                for one in batch
                if (delivery := one.delivery or one.ordered) and delivery.queue.name in self._closed
            ]
            if waiting:
                if not self._unmarked:
                    log.warning("outcomes wait for the ledger: %s", error)
                asyncio.get_running_loop().call_later(LEDGER_RETRY.total_seconds(), self._wake.set)
            return waiting
        self._freed()
        for ended, held in zip(marked, kept, strict=True):
            if not held and ended.mark:
                log.warning("the lease of %s was lost before it ended", ended.mark.identity)
        return []
