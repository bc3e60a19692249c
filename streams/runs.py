"""What one queue of a worker runs: deliveries that hold a lease, from their admission to their outcome."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from providers.errors import RateLimited
from streams.breaker import Breakers
from streams.delivery import Delivery
from streams.execution import Execution, failed, judge
from streams.jobs import Job
from streams.lifecycle import Lifecycle
from streams.limits import DeliveryLimits
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, Cancelled, Completed, DeadLetter, Failure, Outcome
from streams.quarantine import CLEAR_WITHIN, CRASH_LIMIT, SUSPECT_FROM, Quarantine
from streams.ready import Ready
from streams.settle import Settlement
from streams.unledgered import Unledgered
from streams.usage import Usage
from streams.window import Window

YIELD_EVERY = 25
"""After that many jobs that never waited, others get their turn: the next batch is asked for while this one runs."""

STARTED_AFTER = timedelta(milliseconds=100)
"""A job that runs longer is told as `started`; a shorter one is one event, at its end."""

WATCHED_FROM = 25
"""A running job that holds back the position for so many settled records leaves a copy and settles its own."""


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


class Runs:
    """Runs at most `concurrency` jobs at once, and those that are admitted ahead of that as slots become free.

    `window` is told what each has used. `freed` is set when a slot is; `aside` puts a delivery off in an outage and
    says whether it did; `again` takes back a delivery that has lost its lease.
    """

    def __init__(
        self,
        *,
        execution: Execution,
        settlement: Settlement,
        lifecycle: Lifecycle,
        window: Window,
        limits: DeliveryLimits,
        breakers: Breakers,
        unledgered: Unledgered,
        quarantine: Quarantine,
        concurrency: int,
        lease: timedelta,
        clock: Callable[[], datetime],
        freed: asyncio.Event,
        aside: Callable[[Delivery], bool],
        again: Callable[[Delivery], None],
    ) -> None:
        self._execution = execution
        self._settlement = settlement
        self._lifecycle = lifecycle
        self._window = window
        self._limits = limits
        self._breakers = breakers
        self._unledgered = unledgered
        self._quarantine = quarantine
        self._concurrency = concurrency
        self._lease = lease
        self._clock = clock
        self._freed = freed
        self._aside = aside
        self._again = again
        self._ready = Ready()
        self._filled = asyncio.Event()
        self._leased: dict[Delivery, Running] = {}
        self.orphaned: dict[tuple[int, int], Running] = {}
        """What runs on without its partition, by partition and offset."""
        self._changed = asyncio.Event()
        self._started = 0
        self.rounds = 0
        """How many runs have ended."""
        self.usage = Usage()

    # -- in ---------------------------------------------------------------------------------------------

    def wanted(self) -> int:
        """Return how many to admit, for the free slots and ahead of them."""
        return self._ready.wanted(self._concurrency - self._started, self._window.seconds_per_job)

    @property
    def room(self) -> int:
        """Return how many may be admitted, though enough is ready, of organizations that have nothing under way."""
        return self._ready.room(self._window.seconds_per_job)

    def add(self, delivery: Delivery) -> None:
        """Take a delivery that was admitted."""
        running = self._leased[delivery] = Running(delivery)
        self._ready.put(running, time.monotonic())
        self._filled.set()

    def adopt(self, offset: int, offsets: PartitionOffsets) -> bool:
        """Return whether a record that is read again is that of a job that runs here still."""
        running = self.orphaned.pop((offsets.partition, offset), None)
        if running is None or running.delivery not in self._leased:
            return False
        running.delivery.offsets = offsets
        return True

    @property
    def is_ready(self) -> bool:
        """Return whether something waits for a slot."""
        return bool(self._ready)

    @property
    def outages(self) -> list[str]:
        """Return the job types whose jobs step aside for now, for want of their provider or of one of its hosts."""
        return sorted(self._breakers.open)

    @property
    def slots(self) -> int:
        """Return how many jobs run at once at most."""
        return self._concurrency

    @property
    def has_slot(self) -> bool:
        return self._started < self._concurrency

    # -- run --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled, one per slot."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._slot())

    async def _slot(self) -> None:
        call = asyncio.current_task()
        assert call is not None
        # A handler that completes though it was cancelled has kept that from this loop.
        while not call.cancelling():
            while not self._ready:
                self._filled.clear()
                await self._filled.wait()
            began = time.monotonic()
            running = self._ready.pop(began)
            if not self._ready:
                # What came while admission was asked has been slept through if that many were ready then.
                self._freed.set()
            self._started += 1
            try:
                await self._pass(running, call)
            finally:
                self._started -= 1
                self._ready.ended()
                self.rounds += 1
                self._forget(running)
                seconds = time.monotonic() - began
                self._window.ended(running.delivery, seconds)
                self.usage.add(running.delivery.organization_id, seconds)
                self._freed.set()
                self._changed.set()
            if self.rounds % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _pass(self, running: Running, call: asyncio.Task[None]) -> None:
        """Run what a slot is free for, once nothing stands in its way that may kill the worker."""
        delivery, quarantine = running.delivery, self._quarantine
        run = self._await_process if delivery.handler.runs_in == "process" else self._attempt
        suspect = SUSPECT_FROM <= delivery.crashes < CRASH_LIMIT
        if quarantine.closed or (suspect and quarantine.taken):
            await self._return([running])
            return
        if suspect:
            async with quarantine.alone():
                await self._clear()
                await run(running, call)
            return
        quarantine.running += 1
        try:
            await run(running, call)
        finally:
            quarantine.leave()

    async def _clear(self) -> None:
        """Give back what is ready, and wait until nobody holds a lease any more who might be blamed for a death."""
        ready = [self._ready.pop(0.0) for _ in range(len(self._ready))]
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEAR_WITHIN.total_seconds()):
                await self._return(ready)
                await self._settlement.settled()

    async def _return(self, unbegun: Sequence[Running]) -> None:
        """Give back the leases of what has not begun, and ask again later."""
        try:
            await self._settlement.give_back(one.delivery for one in unbegun)
        finally:
            for running in unbegun:
                if self._forget(running):
                    self._breakers.release(running.delivery)
                    self._again(running.delivery)
            self._changed.set()

    def _forget(self, running: Running) -> bool:
        """Hold a lease no longer; False when it is held no more, though its delivery may have been admitted anew."""
        held = self._leased.get(running.delivery) is running
        if held:
            del self._leased[running.delivery]
        return held

    async def _await_process(self, running: Running, call: asyncio.Task[None]) -> None:
        # What waits for a process is not running yet, and may be given up like all that has not started.
        async with self._execution.processes:
            await self._attempt(running, call)

    async def _attempt(self, running: Running, call: asyncio.Task[None]) -> None:
        delivery = running.delivery
        if self._leased.get(delivery) is not running:
            return
        if delivery.leased_until < time.monotonic():
            # The worker stood still after it was admitted: another one may have taken it over.
            await self._return([running])
            return
        if self._breakers.open and self._aside(delivery):
            return
        started_at = running.started_at = self._clock()
        running.call = call
        if not delivery.token:
            self._unledgered.ran(delivery)
        outcome, attempt = await self._outcome(running, call, started_at)
        if outcome is None:
            self._again(delivery)
            return
        if delivery.token:
            self._unledgered.ended(delivery)
        try:
            self._settlement.finish(delivery, outcome, attempt, started_at)
        except Exception as error:  # noqa: BLE001 - such as a follow-up that cannot be published: a bug of the handler
            attempt = failed(error)
            outcome = judge(delivery, attempt, random.random())
            self._settlement.finish(delivery, outcome, attempt, started_at)

    async def _outcome(
        self, running: Running, call: asyncio.Task[None], started_at: datetime
    ) -> tuple[Outcome | None, Attempt]:
        delivery = running.delivery
        if delivery.crashes >= CRASH_LIMIT:
            reason = f"{delivery.crashes} workers ended while they ran it"
            return DeadLetter(reason, Failure.named("WorkerCrashed", reason)), Attempt()
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
        return outcome, attempt

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
            self._settlement.postpone(delivery, now, now + self._lease, "it runs for long", goes_on=True)

    # -- leases and leaving -----------------------------------------------------------------------------

    def end(self, find: Callable[[Delivery], Cancelled | DeadLetter | None]) -> None:
        """End at once what operators say and has not begun, and stop what is cancelled and runs."""
        for delivery, running in list(self._leased.items()):
            outcome = find(delivery)
            if outcome is None:
                continue
            if running.call is None:
                del self._leased[delivery]
                self._window.refund(delivery)
                self._breakers.release(delivery)
                self._settlement.finish(delivery, outcome, Attempt(), None)
                self._changed.set()
            elif isinstance(outcome, Cancelled):
                self._execution.stop(running.call, Cancelled(outcome.by))

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
            self._again(delivery)
        return True

    def leave(self, parted: Sequence[PartitionOffsets]) -> list[Delivery]:
        """Give up what has not started of some partitions; returns what has a lease to be given back."""
        unstarted = [
            one
            for one, running in self._leased.items()
            if running.started_at is None and one.offsets in parted
        ]
        for delivery in unstarted:
            del self._leased[delivery]
            self._window.refund(delivery)
            self._breakers.release(delivery)
        self._window.part(self._leased)
        return unstarted

    def part(self) -> None:
        """Let what still runs go on without its partition, to be found again should that come back."""
        self.orphaned = {
            (one.offsets.partition, one.offset): running for one, running in self._leased.items()
        }

    async def idle(self) -> None:
        """Wait until nothing is running."""
        while self._leased:
            self._changed.clear()
            await self._changed.wait()

    def lend(self, delivery: Delivery) -> bool:
        """Hand the lease of a delivery to one of the same job that runs without; returns whether there is one."""
        for running in self._leased:
            if running.identity == delivery.identity and not running.token:
                running.token, running.leased_until = delivery.token, delivery.leased_until
                running.limits = delivery.limits
                return True
        return False

    def all(self) -> list[Running]:
        """Return what holds a lease, in the order of admission."""
        return list(self._leased.values())

    def unfinished(self) -> list[Delivery]:
        """Return what is still running."""
        return list(self._leased)
