"""One queue on one worker: records in, attempts in the middle, outcomes out.

record ─read─▶ window ─admission─▶ ready ─N runners─▶ outcome ─▶ settlement
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from ratelimit import (
    Admission,
    AdmissionUnavailable,
    Answer,
    Candidate,
    Duplicate,
    Leased,
    Limited,
    Run,
)
from ratelimit.local import Refuses
from schemas.codec import Codec
from streams.breaker import Breakers
from streams.delivery import Delivery, Record
from streams.execution import Execution
from streams.intake import Intake
from streams.lanes import LEASED_ELSEWHERE, NO_LEDGER
from streams.lifecycle import Lifecycle
from streams.limits import DeliveryLimits, holds, is_place
from streams.offsets import PartitionOffsets
from streams.operators import Operators
from streams.order import Order
from streams.quarantine import Quarantine
from streams.queues import SHORTEST_DELAY, OnRedisDown, Queue
from streams.refill import Reader, Refill
from streams.runs import Runs
from streams.settle import Settlement
from streams.unbegun import Unbegun
from streams.unledgered import Unledgered
from streams.window import Window

log = logging.getLogger(__name__)

REDIS_RETRY = timedelta(milliseconds=500)

SINGLE_RETRY = timedelta(seconds=1)
"""How soon a job asks again that is held back by itself, as a limit of its type or provider may have changed."""

PLACE_RETRY = timedelta(milliseconds=250)
"""How soon a job asks again that waits for a place which another worker may give back."""

LEASED_RETRY = timedelta(seconds=1)
"""How soon a delivery of a job that runs elsewhere asks again: its lease may end long before it runs out."""

AT_ONCE = 50
"""Records that are taken before others get their turn: about a millisecond's work."""

TURNS_IN_AN_OUTAGE = 3
"""How many turns others get then while jobs step aside, which is longer work: being admitted takes a job so many."""

MAKES_WAY = "it would hold its partition back"
"""The `reason` of what steps aside."""

LEASED_WAITS = 3
"""How often it asks from the window, where it holds its partition's position back; then from a retry topic."""


class Pipeline:
    """Runs the jobs of one queue, at most `concurrency` at once."""

    def __init__(
        self,
        queue: Queue,
        *,
        codec: Codec,
        admission: Admission,
        execution: Execution,
        settlement: Settlement,
        lifecycle: Lifecycle,
        window: Window,
        reader: Reader,
        operators: Operators,
        limits: DeliveryLimits,
        local: Callable[[], Refuses],
        on_redis_down: OnRedisDown,
        quarantine: Quarantine,
        concurrency: int,
        lease: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self.queue = queue
        self.window = window
        self.refill = Refill(queue.topic, window.surplus, reader, self._take_back, lambda: settlement.full)
        self._admission = admission
        self._settlement = settlement
        self._operators = operators
        self.unbegun = Unbegun(
            queue, operators, admission, settlement, closed=on_redis_down == "closed", clock=clock
        )
        self._lease = lease
        self._clock = clock
        self._quarantine = quarantine
        self.asking: Sequence[Delivery] = ()
        self._rounds = 0
        self._wake = asyncio.Event()
        quarantine.on_open.append(self._wake.set)
        self._taking = True
        self._limits = limits
        self._local = local
        self._on_redis_down = on_redis_down
        self._awaits_place = False
        self._breakers = Breakers()
        self._order = Order(admission, window, closed=on_redis_down == "closed")
        self._unledgered = Unledgered(closed=on_redis_down == "closed")
        self._ledger_is_away = False
        self.runs = Runs(
            execution=execution,
            settlement=settlement,
            lifecycle=lifecycle,
            window=window,
            limits=limits,
            breakers=self._breakers,
            unledgered=self._unledgered,
            quarantine=quarantine,
            concurrency=concurrency,
            lease=lease,
            clock=clock,
            freed=self._wake,
            aside=self._steps_aside,
            again=self.ask_again,
        )
        self._intake = Intake(
            queue, codec, window, settlement, operators, self.unbegun, self.runs, self._breakers, self.refill, clock
        )  # fmt: skip

    # -- in ---------------------------------------------------------------------------------------------

    def take(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        """Put records into the window, or skip them; those that cannot run are settled otherwise at once."""
        if self._taking:
            self._intake.take(records, offsets)
            self._wake.set()

    async def give_way(self) -> None:
        """Let others have their turns before more is taken."""
        for _ in range(TURNS_IN_AN_OUTAGE if self._breakers.open else 1):
            await asyncio.sleep(0)

    def _take_back(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        self._intake.take_back(records, offsets)
        self._wake.set()

    def make_way(self, held_up: Iterable[PartitionOffsets], far: Iterable[PartitionOffsets]) -> None:
        """Put aside what holds back the positions of partitions and cannot run soon; called once per flush."""
        if self.unbegun.queue_is_paused:
            return
        now = self._clock()
        for delivery, due in self.window.step_aside(held_up, far, now):
            self._settlement.postpone(delivery, now, due, MAKES_WAY)

    def released(self, delivery: Delivery) -> None:
        """Let the next of an ordering key go on, now that what became of the one before it is durable."""
        self.window.released(delivery)
        self._wake.set()

    # -- may it run? ------------------------------------------------------------------------------------

    async def admit(self) -> None:
        """Ask admission for batch after batch until the pipeline is stopped."""
        while self._taking:
            wanted = self.runs.wanted()
            if self._stands_still:
                await self._wait(None)
            elif candidates := self.window.next(wanted or self.runs.room, self._clock(), leading=wanted == 0):
                heard = self._operators.heard
                if self._breakers.open:
                    candidates = [one for one in candidates if not self._steps_aside(one)]
                await (self._ask(candidates) if candidates else asyncio.sleep(0))
                if self._operators.heard != heard:
                    self.obey()
            else:
                # While enough is ready, a slot will be free before what is released in the window matters.
                await self._wait(self.window.wakes_at() if wanted else None)

    async def _wait(self, until: datetime | None) -> None:
        timeout = None if until is None else max((until - self._clock()).total_seconds(), 0.0)
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _steps_aside(self, delivery: Delivery) -> bool:
        """Return whether a delivery does not run because of an outage, and has been put off."""
        now = self._clock()
        if not self._intake.steps_aside(delivery, now):
            self._breakers.let_run(delivery, now)
            return False
        self.window.refund(delivery)
        self._rounds += 1
        return True

    async def _ask(self, batch: Sequence[Delivery]) -> None:
        self.asking = batch
        try:
            if any(one.ordering_key for one in batch):
                batch = await self._order.firsts(batch, self._clock())
            candidates = [
                Candidate(one.identity, one.fence(), *self._limits.of(one.handler, one.organization_id))
                for one in batch
            ]
            leased_until = time.monotonic() + self._lease.total_seconds()
            answers: Sequence[Answer] = await self._admission.admit(candidates)
        except AdmissionUnavailable as error:
            if self._on_redis_down == "closed" or not self._taking:
                self._await_ledger(batch, error)
                return
            self._note_ledger(f"goes on without leases: {error}")
            running = {one.identity for one in self.runs.unfinished()}
            answers, leased_until = self._unledgered.admit(batch, running, LEASED_RETRY), math.inf
            if self._on_redis_down == "local":
                refuses = self._local()
                answers = [
                    (refuses(candidate) or answer) if isinstance(answer, Run) else answer
                    for candidate, answer in zip(candidates, answers, strict=True)
                ]
        else:
            self._note_ledger("")
        finally:
            self.asking = ()
            self._rounds += 1
        await self._settlement.give_back(self._sort(batch, candidates, answers, leased_until))

    def _await_ledger(self, batch: Sequence[Delivery], error: AdmissionUnavailable) -> None:
        self._note_ledger(f"waits for Redis: {error}")
        self.window.put_back([one for one in batch if not one.offsets.gone])
        for delivery in (one for one in batch if one.offsets.gone):
            self.window.let_go(delivery)
        self.window.hold_all(self._clock() + REDIS_RETRY, by=NO_LEDGER)

    def _note_ledger(self, trouble: str) -> None:
        """Say once that the ledger is away, and once that it is back."""
        if bool(trouble) != self._ledger_is_away:
            self._ledger_is_away = bool(trouble)
            log.warning("%s %s", self.queue.name, trouble or "has its ledger back")

    def _sort(
        self,
        batch: Sequence[Delivery],
        candidates: Sequence[Candidate],
        answers: Sequence[Answer],
        leased_until: float,
    ) -> list[Delivery]:
        """Do what admission answered; returns what may run and is no longer read here."""
        now = self._clock()
        limited, gone = list[Delivery](), list[Delivery]()
        for delivery, candidate, answer in zip(batch, candidates, answers, strict=True):
            match answer:
                case Run(token, crashes):
                    delivery.token, delivery.crashes = token, crashes
                    delivery.leased_until, delivery.limits = leased_until, candidate.limits
                    if delivery.offsets.gone:
                        self._breakers.release(delivery)
                        gone.append(delivery)
                        self.window.let_go(delivery)
                        continue
                    if token and self._unledgered.knows(delivery):
                        self._ran_unledgered(delivery, now)
                        continue
                    self.runs.add(delivery)
                case Duplicate():
                    self.window.refund(delivery)
                    self._breakers.release(delivery)
                    self._settlement.drop(delivery)
                case _ if delivery.offsets.gone:
                    self.window.let_go(delivery)
                case Leased(retry_after):
                    self._await_lease(delivery, now, retry_after)
                case Limited(retry_after, by):
                    self._limits.refused(self.queue.name, by)
                    if is_place(by):
                        retry_after, self._awaits_place = min(retry_after, PLACE_RETRY), True
                    match holds(by):
                        case "delivery":
                            self.window.hold(delivery, now + min(retry_after, SINGLE_RETRY), by)
                            continue
                        case "organization":
                            until = now + retry_after
                            self.window.hold_lane(delivery.organization_id, until, pause=retry_after, by=by)
                        case "all":
                            self.window.hold_all(now + retry_after, pause=retry_after, by=by)
                    limited.append(delivery)
        self.window.put_back(limited)
        return gone

    def _ran_unledgered(self, delivery: Delivery, now: datetime) -> None:
        """See to a delivery that was leased, though its like runs here, or ran, from when the ledger was away."""
        if self.runs.lend(delivery):
            delivery.token, delivery.leased_until, delivery.limits = "", math.inf, ()
            self._await_lease(delivery, now, LEASED_RETRY)
        else:
            self.window.refund(delivery)
            self._breakers.release(delivery)
            self._settlement.drop(delivery)

    def place_freed(self) -> None:
        """Ask again for what waits for a place, as one may be free now."""
        if self._awaits_place:
            self._awaits_place = False
            self.limits_changed()

    def limits_changed(self) -> None:
        """Ask again for what the limits of before held back."""
        self.window.reopen()
        self._wake.set()

    def _await_lease(self, delivery: Delivery, now: datetime, retry_after: timedelta) -> None:
        self._breakers.release(delivery)
        delivery.waits += 1
        if delivery.waits <= LEASED_WAITS and delivery.not_before is None:
            self.window.hold(delivery, now + min(retry_after, LEASED_RETRY), LEASED_ELSEWHERE)
        else:
            due = now + max(retry_after, SHORTEST_DELAY)
            self.window.refund(delivery)
            self._settlement.postpone(delivery, now, due, "its job runs elsewhere")

    # -- what operators say -----------------------------------------------------------------------------

    def obey(self) -> None:
        """Do what operators have said to what is here: some of it ends, some steps aside, a paused queue goes on."""
        now = self._clock()
        for delivery in self.window.take_out(self._operators.withhold):
            self.window.depart(delivery)
            self.unbegun.withhold(delivery, now)
        self.runs.end(self._operators.end_of)
        self._wake.set()

    # -- leases and leaving -----------------------------------------------------------------------------

    def ask_again(self, delivery: Delivery) -> None:
        """Ask again for a delivery that lost its lease: whether its job is done, or runs elsewhere, or may run here."""
        delivery.token, delivery.leased_until, delivery.limits = "", math.inf, ()
        if delivery.offsets.gone:
            self.window.let_go(delivery)
        elif self.unbegun.withhold(delivery, self._clock()):
            self.window.refund(delivery)
        else:
            self.window.hold(delivery, self._clock() + LEASED_RETRY, LEASED_ELSEWHERE)
            self._wake.set()

    def leave(self, parted: Sequence[PartitionOffsets]) -> list[Delivery]:
        """Give up what has not started of some partitions; returns what has a lease to be given back."""
        for offsets in parted:
            offsets.gone = True
        self.window.drop(parted)
        self.unbegun.leave()
        return self.runs.leave(parted)

    def keep_house(self) -> None:
        """Look up weights that may have changed, and let what was used fade; called once per second."""
        self.window.weigh()
        self.runs.usage.fade(time.monotonic())

    @property
    def has_room(self) -> bool:
        """Return whether more may be read: neither is the window full nor the whole queue paused."""
        return not (self.window.full or self.unbegun.queue_is_paused)

    @property
    def _stands_still(self) -> bool:
        """Return whether nothing may begin: the queue is paused, or a suspect waits or has just begun to run alone."""
        return self.unbegun.queue_is_paused or self._quarantine.closed

    @property
    def rounds(self) -> int:
        """Return how often admission was asked and a run ended."""
        return self._rounds + self.runs.rounds

    @property
    def could_go_on(self) -> bool:
        """Return whether there is something to admit or to start now, and a slot for it."""
        if not self._taking or not self.runs.has_slot:
            return False
        waits = not self._stands_still and self.window.has_next(self._clock())
        return bool(self.asking) or self.runs.is_ready or waits

    @property
    def is_stuck(self) -> bool:
        """Return whether there is a slot, and of all that waits in the window nothing may run."""
        waits = self.window.records and not (self.window.is_held or self._stands_still)
        return bool(waits) and self.runs.has_slot and not self.could_go_on

    def stop(self) -> None:
        """Take and admit nothing more."""
        self._taking = False
        self._wake.set()
        self.refill.stop()
