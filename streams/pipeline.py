"""One queue on one worker: records in, attempts in the middle, outcomes out.

record ─read─▶ window ─admission─▶ ready ─N runners─▶ outcome ─▶ settlement
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from providers.errors import RateLimited
from ratelimit import (
    Admission,
    AdmissionUnavailable,
    Answer,
    Candidate,
    Duplicate,
    Leased,
    Limited,
    Mark,
    Run,
)
from ratelimit.local import Refuses
from schemas.codec import Codec, NotAvro, UnknownSchema
from streams.breaker import Breakers
from streams.cancellation import Cancellations, Unbegun
from streams.delivery import Delivery, Record, read
from streams.errors import InvalidRecord
from streams.execution import Execution, failed, judge
from streams.jobs import Job
from streams.lifecycle import Lifecycle
from streams.limits import DeliveryLimits, holds, is_place
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, Cancelled, Completed, DeadLetter, Failure, Outcome
from streams.quarantine import SUSPECT_FROM, Quarantine
from streams.queues import SHORTEST_DELAY, OnRedisDown, Queue
from streams.settle import Settlement
from streams.unledgered import Unledgered
from streams.window import Window

log = logging.getLogger(__name__)

ADMIT_AHEAD = 200
"""Most deliveries that are admitted before a slot is free for them."""

YIELD_EVERY = 25
"""After that many jobs that never waited, others get their turn: the next batch is asked for while this one runs."""

REDIS_RETRY = timedelta(milliseconds=500)

SINGLE_RETRY = timedelta(seconds=1)
"""How soon a job asks again that is held back by itself, as a limit of its type or provider may have changed."""

PLACE_RETRY = timedelta(milliseconds=250)
"""How soon a job asks again that waits for a place which another worker may give back."""

STARTED_AFTER = timedelta(milliseconds=100)
"""A job that runs longer is told as `started`; a shorter one is one event, at its end."""

LEASED_RETRY = timedelta(seconds=1)
"""How soon a delivery of a job that runs elsewhere asks again: its lease may end long before it runs out."""

LEASED_WAITS = 3
"""How often it asks from the window, where it holds its partition's position back; then from a retry topic."""

WATCHED_FROM = 50
"""A running job that holds back the position for so many settled records leaves a copy and settles its own."""

CRASH_LIMIT = 5
"""A job under which that many workers died is dead, lest it kill the next one."""


class Running:
    """A delivery that holds a lease: admitted, and perhaps started."""

    __slots__ = ("call", "delivery", "progress", "started_at", "told")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.call: asyncio.Task[None] | None = None
        self.started_at: datetime | None = None
        self.told = False
        self.progress: tuple[float, str] | None = None

    def report(self, done: float, note: str) -> None:
        """Keep the latest progress for the next flush."""
        self.progress = (done, note)


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
        cancellations: Cancellations,
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
        self._codec = codec
        self._admission = admission
        self._execution = execution
        self._settlement = settlement
        self._lifecycle = lifecycle
        self._cancellations = cancellations
        self._quarantine = quarantine
        self.unbegun = Unbegun(queue, admission, settlement, closed=on_redis_down == "closed")
        self._concurrency = concurrency
        self._lease = lease
        self._clock = clock
        self._ready: deque[Running] = deque()
        self._filled = asyncio.Event()
        self._leased: dict[Delivery, Running] = {}
        self._orphans: dict[tuple[int, int], Running] = {}
        """What runs on without its partition, by partition and offset."""
        self._started = 0
        self._finished = 0
        self._asking = False
        self.rounds = 0
        """How often admission was asked and a run ended."""
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._taking = True
        self._limits = limits
        self._local = local
        self._on_redis_down = on_redis_down
        self._awaits_place = False
        self._breakers = Breakers()
        self._unledgered = Unledgered()
        self._ledger_is_away = False

    # -- in ---------------------------------------------------------------------------------------------

    def take(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        """Put records into the window; those that cannot run are settled otherwise at once."""
        if not self._taking:
            return
        now = self._clock()
        cancelled = self._cancellations.known
        for record in records:
            if not offsets.read(record.offset):
                continue
            if self._orphans and self._adopt(record.offset, offsets):
                continue
            try:
                delivery = read(self.queue, record, offsets, self._codec)
            except UnknownSchema as error:
                self._settlement.await_schema(self.queue, record, offsets, error)
            except (InvalidRecord, NotAvro) as error:
                self._settlement.refuse(self.queue, record, offsets, error)
            except Exception as error:
                # No bytes that someone sends may end the worker: it would read them again, and end again.
                log.exception("%s/%s could not be read", self.queue.topic, record.offset)
                self._settlement.refuse(self.queue, record, offsets, error)
            else:
                due = delivery.not_before
                if cancelled and self._give_up(delivery):
                    continue
                if due is None or due <= now:
                    self.window.add(delivery)
                elif due - now < SHORTEST_DELAY:
                    self.window.hold(delivery, due)
                else:
                    self._settlement.postpone(delivery, now, due, "not due yet")
        self._wake.set()

    def _adopt(self, offset: int, offsets: PartitionOffsets) -> bool:
        """Return whether a record that is read again is that of a job that runs here still."""
        running = self._orphans.pop((offsets.partition, offset), None)
        if running is None or running.delivery not in self._leased:
            return False
        running.delivery.offsets = offsets
        return True

    # -- may it run? ------------------------------------------------------------------------------------

    async def admit(self) -> None:
        """Ask admission for batch after batch until the pipeline is stopped."""
        while self._taking:
            wanted = self._wanted()
            if wanted <= 0:
                # Until a slot is free, nothing that is released in the window matters.
                await self._wait(None)
            elif candidates := self.window.next(wanted, self._clock()):
                heard = self._cancellations.heard
                if self._breakers.open:
                    candidates = [one for one in candidates if not self._steps_aside(one)]
                await (self._ask(candidates) if candidates else asyncio.sleep(0))
                if self._cancellations.heard != heard:
                    self.cancel()
            else:
                await self._wait(self.window.wakes_at())

    def _wanted(self) -> int:
        """Return how many to admit: the free slots, and ahead of them as many as lately ended twice over."""
        ahead = min(ADMIT_AHEAD, 2 * self._finished)
        waiting = len(self._ready)
        if waiting > ahead // 2:
            return 0
        self._finished = 0
        return self._concurrency - self._started - waiting + ahead

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
        snoozed = self._breakers.aside(delivery, self._clock(), random.random())
        if snoozed is None:
            return False
        self._settlement.finish(delivery, snoozed, Attempt(), None)
        self.rounds += 1
        return True

    async def _ask(self, batch: Sequence[Delivery]) -> None:
        candidates = [
            Candidate(one.identity, one.fence(), *self._limits.of(one.handler, one.organization_id))
            for one in batch
        ]
        leased_until = time.monotonic() + self._lease.total_seconds()
        self._asking = True
        try:
            answers: Sequence[Answer] = await self._admission.admit(candidates)
        except AdmissionUnavailable as error:
            if self._on_redis_down == "closed" or not self._taking:
                self._note_ledger(f"waits for Redis: {error}")
                self.window.put_back([one for one in batch if not one.offsets.gone])
                self.window.hold_all(self._clock() + REDIS_RETRY)
                return
            self._note_ledger(f"goes on without leases: {error}")
            running = {one.identity for one in self._leased}
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
            self._asking = False
            self.rounds += 1
        self._sort(batch, candidates, answers, leased_until)

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
    ) -> None:
        now = self._clock()
        limited: list[Delivery] = []
        for delivery, candidate, answer in zip(batch, candidates, answers, strict=True):
            match answer:
                case Run(token, crashes):
                    delivery.token, delivery.crashes = token, crashes
                    delivery.leased_until, delivery.limits = leased_until, candidate.limits
                    if delivery.offsets.gone:
                        self._breakers.release(delivery)
                        self._settlement.give_back(delivery)
                        continue
                    running = self._leased[delivery] = Running(delivery)
                    self._ready.append(running)
                case Duplicate():
                    self._breakers.release(delivery)
                    self._settlement.drop(delivery)
                case _ if delivery.offsets.gone:
                    continue
                case Leased(retry_after):
                    self._await_lease(delivery, now, retry_after)
                case Limited(retry_after, by):
                    if is_place(by):
                        retry_after, self._awaits_place = min(retry_after, PLACE_RETRY), True
                    match holds(by):
                        case "delivery":
                            self.window.hold(delivery, now + min(retry_after, SINGLE_RETRY))
                            continue
                        case "organization":
                            self.window.hold_lane(delivery.organization_id, now + retry_after)
                        case "all":
                            self.window.hold_all(now + retry_after)
                    limited.append(delivery)
        self.window.put_back(limited)
        self._filled.set()

    def place_freed(self) -> None:
        """Ask again for what waits for a place, as one may be free now."""
        if self._awaits_place:
            self._awaits_place = False
            self.window.reopen()
            self._wake.set()

    def limits_changed(self) -> None:
        """Ask again for what the limits of before held back."""
        self.window.reopen()
        self._wake.set()

    def _await_lease(self, delivery: Delivery, now: datetime, retry_after: timedelta) -> None:
        self._breakers.release(delivery)
        delivery.waits += 1
        if delivery.waits <= LEASED_WAITS and delivery.not_before is None:
            self.window.hold(delivery, now + min(retry_after, LEASED_RETRY))
        else:
            due = now + max(retry_after, SHORTEST_DELAY)
            self._settlement.postpone(delivery, now, due, "its job runs elsewhere")

    # -- run --------------------------------------------------------------------------------------------

    async def runners(self) -> None:
        """Run jobs until cancelled, one per slot."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._runner())

    async def _runner(self) -> None:
        call = asyncio.current_task()
        assert call is not None
        while True:
            while not self._ready:
                self._filled.clear()
                await self._filled.wait()
            running = self._ready.popleft()
            if not self._ready:
                # What came while admission was asked has been slept through if that many were ready then.
                self._wake.set()
            self._started += 1
            try:
                await self._pass(running, call)
            finally:
                self._started -= 1
                self._finished += 1
                self.rounds += 1
                self._leased.pop(running.delivery, None)
                self._wake.set()
                self._changed.set()
            if self._finished % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _pass(self, running: Running, call: asyncio.Task[None]) -> None:
        """Run what a slot is free for, once nothing stands in its way that may kill the worker."""
        run = self._await_process if running.delivery.handler.runs_in == "process" else self._attempt
        quarantine = self._quarantine
        if SUSPECT_FROM <= running.delivery.crashes < CRASH_LIMIT:
            async with quarantine.alone():
                await run(running, call)
            return
        if quarantine.closed:
            await quarantine.opened()
        quarantine.running += 1
        try:
            await run(running, call)
        finally:
            quarantine.leave()

    async def _await_process(self, running: Running, call: asyncio.Task[None]) -> None:
        # What waits for a process is not running yet, and may be given up like all that has not started.
        async with self._execution.processes:
            await self._attempt(running, call)

    async def _attempt(self, running: Running, call: asyncio.Task[None]) -> None:
        delivery = running.delivery
        if delivery not in self._leased:
            return
        if delivery.leased_until < time.monotonic():
            # The worker stood still after it was admitted: another one may have taken it over.
            self._breakers.release(delivery)
            self._settlement.give_back(delivery)
            self.ask_again(delivery)
            return
        if self._breakers.open and self._steps_aside(delivery):
            return
        started_at = running.started_at = self._clock()
        running.call = call
        if not delivery.token:
            self._unledgered.ran(delivery)
        if delivery.crashes >= CRASH_LIMIT:
            reason = f"{delivery.crashes} workers ended while they ran it"
            outcome: Outcome | None = DeadLetter(reason, Failure.named("WorkerCrashed", reason))
            attempt = Attempt()
        else:
            job: Job[Any] = Job(
                id=delivery.job_id,
                type=delivery.handler.job_type,
                organization_id=delivery.organization_id,
                payload=delivery.payload,
                attempt=delivery.attempt,
                max_attempts=delivery.max_attempts,
                queued_at=delivery.created_at,
                idempotency_key=delivery.idempotency_key,
                report=running.report,
            )
            outcome, attempt = await self._execution.run(delivery, job, call)
            if isinstance(attempt.error, RateLimited) and delivery.handler.provider is not None:
                self._limits.push(delivery.handler.provider, attempt.error.retry_after)
            if type(outcome) is Completed:
                if delivery.handler.job_type in self._breakers.failing:
                    self._breakers.succeeded(delivery, started_at, self._clock())
            elif outcome is not None:
                now, jitter = self._clock(), random.random()
                outcome = self._breakers.failed(delivery, outcome, attempt.error, now, jitter)
        if outcome is None:
            self.ask_again(delivery)
            return
        try:
            self._settlement.finish(delivery, outcome, attempt, started_at)
        except Exception as error:  # noqa: BLE001 - such as a follow-up that cannot be published: a bug of the handler
            attempt = failed(error)
            outcome = judge(delivery, attempt, random.random())
            self._settlement.finish(delivery, outcome, attempt, started_at)

    def tell(self) -> None:
        """Write the events of jobs that have been running for a while; called once per flush."""
        now = self._clock()
        for running in self._leased.values():
            started_at = running.started_at
            if started_at is None or now - started_at < STARTED_AFTER:
                continue
            self._watch(running.delivery, now)
            if not running.told:
                running.told = True
                event = self._lifecycle.of("started", running.delivery, now, started_at=started_at)
                self._settlement.note(event)
            if running.progress is not None:
                (done, note), running.progress = running.progress, None
                event = self._lifecycle.of(
                    "progressed",
                    running.delivery,
                    now,
                    started_at=started_at,
                    progress=done,
                    reason=note or None,
                )
                self._settlement.note(event)

    def _watch(self, delivery: Delivery, now: datetime) -> None:
        """Let the position of a partition go on behind a job that keeps running, leaving a copy of it to come back.

        Without a lease nothing would tell the copy that the job still runs.
        """
        offsets = delivery.offsets
        if delivery.token and not delivery.watched and not offsets.gone and offsets.held_back >= WATCHED_FROM:
            delivery.watched = True
            self._settlement.postpone(delivery, now, now + self._lease, "it runs for long")

    # -- cancelling -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Give up what is cancelled and waits here, and stop what runs."""
        find = self._cancellations.of
        for delivery in self.window.take_out(lambda one: find(one) is not None):
            self._give_up(delivery)
        for delivery, running in list(self._leased.items()):
            cancel = find(delivery)
            if cancel is None:
                continue
            if running.call is not None:
                self._execution.stop(running.call, Cancelled(cancel.by))
            else:
                del self._leased[delivery]
                self._settlement.finish(delivery, cancel.outcome(delivery), Attempt(), None)
                self._changed.set()

    def _give_up(self, delivery: Delivery) -> bool:
        """Return whether a delivery without a lease is cancelled, and see to its end if so."""
        cancel = self._cancellations.of(delivery)
        if cancel is not None:
            self.unbegun.add(delivery, cancel.outcome(delivery))
        return cancel is not None

    # -- leases and leaving -----------------------------------------------------------------------------

    def leased(self) -> list[Delivery]:
        """Return the deliveries that hold a lease."""
        return [one for one in self._leased if one.token]

    def lose(self, delivery: Delivery) -> bool:
        """Stop a delivery whose lease was lost, as another worker runs its job; False when it has ended."""
        running = self._leased.get(delivery)
        if running is None:
            return False
        if running.call is not None:
            self._execution.stop(running.call, None)
        else:
            del self._leased[delivery]
            self.ask_again(delivery)
        return True

    def ask_again(self, delivery: Delivery) -> None:
        """Ask again for a delivery that lost its lease: whether its job is done, or runs elsewhere, or may run here."""
        delivery.token, delivery.leased_until, delivery.limits = "", math.inf, ()
        if not delivery.offsets.gone and not self._give_up(delivery):
            self.window.hold(delivery, self._clock() + LEASED_RETRY)
            self._wake.set()

    def leave(self, parted: Sequence[PartitionOffsets]) -> list[Mark]:
        """Give up what has not started of some partitions; returns the marks that give leases back."""
        for offsets in parted:
            offsets.gone = True
        self.window.drop(parted)
        self.unbegun.leave()
        unstarted = [
            one
            for one, running in self._leased.items()
            if running.started_at is None and one.offsets in parted
        ]
        for delivery in unstarted:
            del self._leased[delivery]
            self._breakers.release(delivery)
        return [mark for mark in map(self._settlement.release, unstarted) if mark is not None]

    def part(self) -> None:
        """Let what still runs go on without its partition, to be found again should that come back."""
        self._orphans = {
            (one.offsets.partition, one.offset): running for one, running in self._leased.items()
        }

    @property
    def could_go_on(self) -> bool:
        """Return whether there is something to admit or to start now, and a slot for it."""
        if not self._taking or self._started >= self._concurrency:
            return False
        return self._asking or bool(self._ready) or self.window.has_next(self._clock())

    def stop(self) -> None:
        """Take and admit nothing more."""
        self._taking = False
        self._wake.set()

    async def idle(self) -> None:
        """Wait until nothing is running."""
        while self._leased:
            self._changed.clear()
            await self._changed.wait()

    def unfinished(self) -> list[Delivery]:
        """Return what is still running."""
        return list(self._leased)
