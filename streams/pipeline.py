"""One queue on one worker: records in, attempts in the middle, outcomes out.

record ─read─▶ window ─admission─▶ ready ─N runners─▶ outcome ─▶ settlement
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from ratelimit import (
    Admission,
    AdmissionUnavailable,
    Answer,
    Candidate,
    Duplicate,
    Leased,
    Limit,
    Limited,
    Mark,
    Run,
)
from schemas.codec import Codec, NotAvro, UnknownSchema
from streams.delivery import Delivery, Record, read
from streams.errors import InvalidRecord
from streams.execution import Execution, failed, judge
from streams.jobs import Job
from streams.lifecycle import Lifecycle
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, DeadLetter, Failure, Outcome
from streams.queues import SHORTEST_DELAY, Queue
from streams.settle import Settlement
from streams.window import Window

log = logging.getLogger(__name__)

ADMIT_AHEAD = 200
"""Most deliveries that are admitted before a slot is free for them."""

YIELD_EVERY = 25
"""After that many jobs that never waited, others get their turn: the next batch is asked for while this one runs."""

REDIS_RETRY = timedelta(milliseconds=500)
STARTED_AFTER = timedelta(milliseconds=100)
"""A job that runs longer is told as `started`; a shorter one is one event, at its end."""

LEASED_RETRY = timedelta(seconds=1)
"""How soon a delivery of a job that runs elsewhere asks again: its lease may end long before it runs out."""

CRASH_LIMIT = 5
"""A job under which that many workers died is dead, lest it kill the next one."""


class Running:
    """A delivery that holds a lease: admitted, and perhaps started."""

    __slots__ = ("delivery", "progress", "started_at", "told")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
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
        concurrency: int,
        clock: Callable[[], datetime],
    ) -> None:
        self.queue = queue
        self.window = window
        self._codec = codec
        self._admission = admission
        self._execution = execution
        self._settlement = settlement
        self._lifecycle = lifecycle
        self._concurrency = concurrency
        self._clock = clock
        self._ready: deque[Running] = deque()
        self._filled = asyncio.Event()
        self._leased: dict[Delivery, Running] = {}
        self._started = 0
        self._finished = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._taking = True
        self._limits = _limits(queue)

    # -- in ---------------------------------------------------------------------------------------------

    def take(self, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        """Put records into the window; those that cannot run are settled otherwise at once."""
        if not self._taking:
            return
        now = self._clock()
        for record in records:
            if not offsets.read(record.offset):
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
                if due is None or due <= now:
                    self.window.add(delivery)
                elif due - now < SHORTEST_DELAY:
                    self.window.hold(delivery, due)
                else:
                    self._settlement.postpone(delivery, now)
        self._wake.set()

    # -- may it run? ------------------------------------------------------------------------------------

    async def admit(self) -> None:
        """Ask admission for batch after batch until the pipeline is stopped."""
        while self._taking:
            wanted = self._wanted()
            if wanted <= 0:
                # Until a slot is free, nothing that is released in the window matters.
                await self._wait(None)
            elif candidates := self.window.next(wanted, self._clock()):
                await self._ask(candidates)
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

    async def _ask(self, batch: Sequence[Delivery]) -> None:
        candidates = [
            Candidate(one.identity, one.fence(), self._limits(one), one.handler.cost) for one in batch
        ]
        try:
            answers: Sequence[Answer] = await self._admission.admit(candidates)
        except AdmissionUnavailable as error:
            if self.queue.on_redis_down == "closed" or not self._taking:
                log.warning("%s waits for Redis: %s", self.queue.name, error)
                self.window.put_back(batch)
                self.window.hold_all(self._clock() + REDIS_RETRY)
                return
            log.warning("%s goes on without leases or limits: %s", self.queue.name, error)
            answers = [Run("", 0)] * len(batch)
        self._sort(batch, answers, self._clock())

    def _sort(self, batch: Sequence[Delivery], answers: Sequence[Answer], now: datetime) -> None:
        limited: list[Delivery] = []
        for delivery, answer in zip(batch, answers, strict=True):
            match answer:
                case Run(token, crashes):
                    delivery.token, delivery.crashes = token, crashes
                    running = self._leased[delivery] = Running(delivery)
                    self._ready.append(running)
                case Duplicate():
                    self._settlement.drop(delivery)
                case Leased(retry_after):
                    self.window.hold(delivery, now + min(retry_after, LEASED_RETRY))
                case Limited(retry_after, by):
                    limited.append(delivery)
                    if by.startswith("organization:"):
                        self.window.hold_lane(delivery.organization_id, now + retry_after)
                    else:
                        self.window.hold_all(now + retry_after)
        self.window.put_back(limited)
        self._filled.set()

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
            if running.delivery not in self._leased:
                continue
            self._started += 1
            try:
                if running.delivery.handler.runs_in == "process":
                    await self._await_process(running, call)
                else:
                    await self._attempt(running, call)
            finally:
                self._started -= 1
                self._finished += 1
                self._leased.pop(running.delivery, None)
                self._wake.set()
                self._changed.set()
            if self._finished % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _await_process(self, running: Running, call: asyncio.Task[None]) -> None:
        # What waits for a process is not running yet, and may be given up like all that has not started.
        async with self._execution.processes:
            if running.delivery in self._leased:
                await self._attempt(running, call)

    async def _attempt(self, running: Running, call: asyncio.Task[None]) -> None:
        delivery = running.delivery
        started_at = running.started_at = self._clock()
        if delivery.crashes >= CRASH_LIMIT:
            reason = f"{delivery.crashes} workers ended while they ran it"
            outcome: Outcome = DeadLetter(reason, Failure.named("WorkerCrashed", reason))
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

    # -- leases and leaving -----------------------------------------------------------------------------

    def leases(self) -> list[tuple[str, str]]:
        """Return the identity and token of every lease that is held."""
        return [(one.identity, one.token) for one in self._leased if one.token]

    def leave(self, parted: Sequence[PartitionOffsets]) -> list[Mark]:
        """Give up what has not started of some partitions; returns the marks that give leases back."""
        self.window.drop(parted)
        unstarted = [
            one
            for one, running in self._leased.items()
            if running.started_at is None and one.offsets in parted
        ]
        for delivery in unstarted:
            del self._leased[delivery]
        return [mark for mark in map(self._settlement.release, unstarted) if mark is not None]

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


def _limits(queue: Queue) -> Callable[[Delivery], tuple[Limit, ...]]:
    """Return which limits a delivery of the queue is held to."""
    rate = queue.limit
    if rate is None:
        return lambda delivery: ()
    if rate.scope == "queue":
        shared = (Limit(f"queue:{queue.name}", rate.count, rate.per),)
        return lambda delivery: shared
    count, per = rate.count, rate.per
    known: dict[str, tuple[Limit, ...]] = {}

    def of_organization(delivery: Delivery) -> tuple[Limit, ...]:
        limits = known.get(delivery.organization_id)
        if limits is None:
            if len(known) >= 10_000:
                known.clear()
            name = f"organization:{delivery.organization_id}:{queue.name}"
            limits = known[delivery.organization_id] = (Limit(name, count, per),)
        return limits

    return of_organization
