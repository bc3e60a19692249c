"""Make outcomes durable, in the order that loses nothing.

For a batch of outcomes: write retry and dead-letter records and lifecycle events and wait for the broker; then
mark the ledger; then settle the offsets. A crash in between repeats work and never loses it: the ledger and the
fence in it tell a repeated delivery from a new one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_never

from ratelimit import Admission, AdmissionUnavailable, Done, Mark, Place, Released, Waiting, fence
from streams.delivery import (
    Delivery,
    Headers,
    Record,
    check_headers,
    header_text,
    headers_of,
    milliseconds,
    next_headers,
    not_before_of,
    origin_of,
    place_of,
)
from streams.errors import InvalidRecord, StreamsError
from streams.lifecycle import Lifecycle
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, Cancelled, Completed, DeadLetter, Failure, Outcome, Retry, Snoozed
from streams.producer import Message, Producer
from streams.publication import FollowUps
from streams.queues import Queue, waiting_topic

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
    """Whose lease the mark is signed with; None when the lease is only given back."""
    ordered: Delivery | None = None
    """Whose place in the line of its ordering key is kept or left; None when it has none."""
    kept_until: datetime | None = None
    """When the job that keeps its place is due; None when the place is left."""
    goes_on: bool = False
    """The job still runs, and those behind it wait."""


class Settlement:
    """Collects outcomes and makes them durable, a batch at a time, for all queues of one worker."""

    def __init__(
        self,
        *,
        producer: Producer,
        admission: Admission,
        lifecycle: Lifecycle,
        follow_ups: FollowUps,
        clock: Callable[[], datetime],
        snooze_limit: int,
        unknown_schema_delay: timedelta,
        unknown_schema_limit: timedelta,
        lost: Callable[[Delivery], None],
        released: Callable[[Delivery], None],
        freed: Callable[[], None],
        closed: Collection[str],
    ) -> None:
        self._producer = producer
        self._admission = admission
        self._lifecycle = lifecycle
        self._follow_ups = follow_ups
        self._clock = clock
        self._snooze_limit = snooze_limit
        self._unknown_schema_delay = unknown_schema_delay
        self._unknown_schema_limit = unknown_schema_limit
        self._lost = lost
        self._released = released
        self._freed = freed
        self._closed = closed
        """Queues whose positions wait for the ledger."""
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

    def finish(
        self, delivery: Delivery, outcome: Outcome, attempt: Attempt, started_at: datetime | None
    ) -> None:
        """Take the outcome of an attempt; `started_at` is None when it did not begin."""
        at = self._clock()
        if isinstance(outcome, Snoozed) and delivery.snoozes >= self._snooze_limit:
            reason = f"snoozed {delivery.snoozes} times, last because: {outcome.reason}"
            outcome = DeadLetter(reason, Failure.named("SnoozeLimit", reason))
        messages, end = self._route(delivery, outcome, attempt, started_at, at)
        # What stepped aside before it was admitted has nothing to tell the ledger: the fence of its snooze will.
        unasked = started_at is None and not delivery.token and not isinstance(outcome, Cancelled)
        mark = None if unasked else Mark(delivery.identity, delivery.token, end, delivery.limits)
        ended = Ended(messages, delivery.offsets, delivery.offset, mark, delivery)
        if delivery.ordering_key is not None:
            ended.ordered = delivery
            if isinstance(outcome, Retry | Snoozed) and delivery.handler.on_retry == "block":
                ended.kept_until = at + outcome.delay
        self._add(ended)

    def _route(
        self,
        delivery: Delivery,
        outcome: Outcome,
        attempt: Attempt,
        started_at: datetime | None,
        at: datetime,
    ) -> tuple[list[Message], Done | Waiting]:
        """Return what is written for an outcome and how the ledger remembers it; the only place that routes."""
        tell = self._lifecycle.of
        facts: dict[str, Any] = {
            "started_at": started_at,
            "attempt": attempt,
            "memory_bytes": self.memory_bytes,
        }
        match outcome:
            case Completed(output, wanted):
                event = tell("completed", delivery, at, output=output, **facts)
                return [*self._follow_ups.of(delivery, wanted, at), event], Done()
            case Retry(delay, failure):
                due = at + delay
                carried = _carry(
                    delivery, delay, due, delivery.attempt + 1, delivery.snoozes, failure=failure
                )
                event = tell("retried", delivery, at, not_before=due, failure=failure, **facts)
                return [carried, event], Waiting(
                    fence(delivery.replay_id or "", delivery.attempt + 1, delivery.snoozes)
                )
            case Snoozed(delay, reason):
                due = at + delay
                carried = _carry(delivery, delay, due, delivery.attempt, delivery.snoozes + 1, reason=reason)
                event = tell("snoozed", delivery, at, not_before=due, reason=reason, **facts)
                return [carried, event], Waiting(
                    fence(delivery.replay_id or "", delivery.attempt, delivery.snoozes + 1)
                )
            case DeadLetter(reason, failure):
                headers = next_headers(
                    delivery,
                    attempt=delivery.attempt,
                    snoozes=delivery.snoozes,
                    reason=reason,
                    extra=_failure_headers(failure, at),
                )
                letter = Message(delivery.queue.dead_letter_topic, delivery.key, delivery.value, headers)
                event = tell("dead", delivery, at, reason=reason, failure=failure, **facts)
                return [letter, event], Waiting(delivery.fence() + "~")
            case Cancelled(by, told):
                events = [] if told else [tell("cancelled", delivery, at, reason=by, **facts)]
                return events, Waiting(delivery.fence() + "~")
            case _:
                assert_never(outcome)

    def postpone(
        self, delivery: Delivery, now: datetime, due: datetime, reason: str, *, goes_on: bool = False
    ) -> None:
        """Send a copy of a delivery to wait, and settle its record; this is told to nobody.

        For one whose organization has its share of the window already, and for one that would hold its partition's
        position back, perhaps as its job `goes_on` running: when the copy comes due, the ledger tells whether there
        is anything left to do. It keeps its place in the order of its key.
        """
        carried = _carry(delivery, due - now, due, delivery.attempt, delivery.snoozes, reason=reason)
        ended = Ended([carried], delivery.offsets, delivery.offset, goes_on=goes_on)
        if delivery.ordering_key is not None:
            ended.ordered, ended.kept_until = delivery, due
        self._add(ended)

    def send_back(self, delivery: Delivery, now: datetime, due: datetime) -> None:
        """Send a copy of a delivery that came before its time to wait; its place in an order is where it is now."""
        carried = _carry(delivery, due - now, due, delivery.attempt, delivery.snoozes, reason="not due yet")
        self._add(Ended([carried], delivery.offsets, delivery.offset))

    def drop(self, delivery: Delivery) -> None:
        """Settle a delivery of a job that is finished or was taken over by a later delivery."""
        ordered = delivery if delivery.ordering_key is not None else None
        self._add(Ended([], delivery.offsets, delivery.offset, ordered=ordered))

    def give_back(self, delivery: Delivery) -> None:
        """Give back the lease of a delivery that will not run here; its record stays unsettled."""
        mark = self.release(delivery)
        if mark is not None:
            self._add(Ended([], PartitionOffsets(delivery.queue.topic, delivery.offsets.partition), 0, mark))

    def refuse(self, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception) -> None:
        """Bury a record that breaks the wire format, its bytes and key unchanged."""
        at = self._clock()
        failure = Failure.named(type(error).__name__, str(error))
        headers = headers_of(record)
        origin = origin_of(record, headers)
        headers["origin"] = header_text(origin)
        headers["queue"] = queue.name.encode()
        headers["reason"] = header_text("invalid record")
        headers.update((name, header_text(text)) for name, text in _failure_headers(failure, at))
        messages = [Message(queue.dead_letter_topic, record.key, record.value, list(headers.items()))]
        if isinstance(error, InvalidRecord) and error.job is not None:
            messages.append(
                self._lifecycle.stated(
                    "dead", error.job, at, queue=queue.name, maxAttempts=1, reason="invalid record",
                    origin=origin,
                    error={"kind": failure.kind, "message": failure.message, "fingerprint": failure.fingerprint},
                )
            )  # fmt: skip
        log.warning("refused %s: %s", place_of(record), error)
        self._add(Ended(messages, offsets, record.offset))

    def await_schema(self, queue: Queue, record: Record, offsets: PartitionOffsets, error: Exception) -> None:
        """Snooze a record whose schema this worker does not have yet; bury it when that lasts too long."""
        at = self._clock()
        headers = headers_of(record)
        try:
            check_headers(headers)
            stated = not_before_of(headers)
        except InvalidRecord as invalid:
            self.refuse(queue, record, offsets, invalid)
            return
        raw = headers.get("unknown-schema-since", b"")
        now_ms = milliseconds(at)
        # Whoever wrote it: it neither lies ahead, which would make the wait endless, nor makes it shorter.
        since_ms = min(int(raw), now_ms) if raw.isdigit() and len(raw) < 16 else now_ms
        if now_ms - since_ms > self._unknown_schema_limit.total_seconds() * 1000:
            self.refuse(queue, record, offsets, error)
            return
        due = max(at + self._unknown_schema_delay, stated or at)
        headers["unknown-schema-since"] = b"%d" % since_ms
        headers["origin"] = header_text(origin_of(record, headers))
        headers["queue"] = queue.name.encode()
        headers["reason"] = header_text(str(error))
        headers["not-before"] = b"%d" % milliseconds(due)
        message = Message(waiting_topic(queue, due - at), record.key, record.value, list(headers.items()))
        self._add(Ended([message], offsets, record.offset))

    def release(self, delivery: Delivery) -> Mark | None:
        """Return the mark that gives the lease of a delivery back unused."""
        return (
            Mark(delivery.identity, delivery.token, Released(), delivery.limits) if delivery.token else None
        )

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
        return len(self._ended) + len(self._settling) + len(self._unmarked) >= UNSETTLED_BOUND

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
        messages = notes + [message for ended in batch for message in ended.messages]
        if messages:
            errors = await self._producer.send(messages)
            if errors:
                raise BrokerRefused(f"{len(errors)} of {len(messages)} records: {errors[0].str()}")
        batch = self._settling = self._unmarked + batch
        self._unmarked = await self._mark([one for one in batch if one.mark is not None or one.ordered])
        waiting = set(map(id, self._unmarked))
        for ended in batch:
            if id(ended) not in waiting:
                ended.offsets.settle(ended.offset)
                if ended.ordered is not None and not ended.goes_on:
                    self._released(ended.ordered)
        self._settling = []

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
        ordered = [one for one in batch if one.ordered is not None]
        try:
            if ordered:
                # Before the ledger lets go of a job, lest the next of its key believes that it is the first.
                await self._admission.keep_places(_kept(ordered))
            kept = await self._admission.settle([ended.mark for ended in marked if ended.mark])
            if ordered:
                await self._admission.leave_places(_left(ordered))
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


def _kept(batch: Iterable[Ended]) -> list[tuple[Place, datetime]]:
    return [(one.ordered.place, one.kept_until) for one in batch if one.ordered and one.kept_until]


def _left(batch: Iterable[Ended]) -> list[tuple[Place, str, bool]]:
    return [
        (one.ordered.place, one.ordered.identity, one.ordered.handler.on_retry == "pass")
        for one in batch
        if one.ordered and not one.kept_until
    ]


def _carry(
    delivery: Delivery,
    delay: timedelta,
    due: datetime,
    attempt: int,
    snoozes: int,
    *,
    reason: str = "",
    failure: Failure | None = None,
) -> Message:
    headers: Headers = next_headers(
        delivery,
        attempt=attempt,
        snoozes=snoozes,
        reason=reason or (f"{failure.kind}: {failure.message}" if failure else ""),
        not_before=due,
    )
    return Message(waiting_topic(delivery.queue, delay), delivery.key, delivery.value, headers)


def _failure_headers(failure: Failure, at: datetime) -> list[tuple[str, str]]:
    return [
        ("error-kind", failure.kind),
        ("error-message", failure.message),
        ("failed-at", str(milliseconds(at))),
    ]
