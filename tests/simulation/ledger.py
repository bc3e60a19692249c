"""A simulated Redis: the model of admission, shared by all workers, and the network in front of it.

The network of each worker may lose requests, lose answers after the script ran, or be slow. `Connection` does
what `ratelimit.redis.RedisAdmission` does about it: a deadline for each call, a second try, and doubts about
batches whose answer never came, so that the next batch takes over what they were granted.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from ratelimit import AdmissionUnavailable, Answer, Candidate, InLine, Lease, Mark, Released, Run
from ratelimit.admission import EPOCH
from ratelimit.model import ModelAdmission
from tests.simulation.broker import outside
from tests.simulation.loop import Loop, Process

T = TypeVar("T")

TIMEOUT_SECONDS = 2.0


@dataclass
class Holding:
    """A lease as an observer of the ledger's answers knows it."""

    token: str
    process: Process
    fence: str
    granted_at: float
    renewed_at: float
    until: float


@dataclass
class Grant:
    """A run that the ledger allowed, and whom it took the lease from."""

    identity: str
    fence: str
    process: Process
    at: float
    crashes: int
    took_over: Holding | None


@dataclass
class Network:
    """What goes wrong between one worker and Redis, until when."""

    down_until: float = 0.0
    slow_until: float = 0.0
    lossy_until: float = 0.0
    troubles: list[tuple[float, float]] = field(default_factory=list)
    """From when to when each call took that was late or failed."""


class Redis:
    """The ledger itself; `flush` loses everything."""

    def __init__(
        self, loop: Loop, chance: random.Random, lease: timedelta, now: Callable[[], datetime]
    ) -> None:
        self.loop = loop
        self.chance = chance
        self.lease_seconds = lease.total_seconds()
        self.model = ModelAdmission(lease=lease, clock=now)
        self.holdings: dict[str, Holding] = {}
        self.grants: list[Grant] = []
        self.fences: dict[str, set[str]] = {}
        self.broken: list[str] = []
        """Answers that no ledger should have given."""
        self.flushed = 0

    def flush(self) -> None:
        """Lose everything."""
        self.model.flush()
        self.holdings.clear()
        self.flushed += 1

    async def admit(
        self, candidates: Sequence[Candidate], process: Process, doubted: set[str]
    ) -> list[Answer]:
        """Answer a batch, after giving back what batches in doubt were granted."""
        unheard = [
            Mark(one.identity, held.token, Released())
            for one in candidates
            if (held := self.holdings.get(one.identity)) is not None and held.token in doubted
        ]
        await self.settle(unheard)
        answers = await self.model.admit(candidates)
        now = self.loop.time()
        for candidate, answer in zip(candidates, answers, strict=True):
            if isinstance(answer, Run):
                self._granted(candidate, answer, process, now)
        return answers

    def _granted(self, candidate: Candidate, answer: Run, process: Process, now: float) -> None:
        before = self.holdings.pop(candidate.identity, None)
        if before is not None and before.until > now + 0.002:
            self.broken.append(
                f"{candidate.identity} was leased to {process.name} at {now:.3f} s while {before.process.name}"
                f" held it until {before.until:.3f} s"
            )
        self.grants.append(Grant(candidate.identity, candidate.fence, process, now, answer.crashes, before))
        self.fences.setdefault(candidate.identity, set()).add(candidate.fence)
        self.holdings[candidate.identity] = Holding(
            answer.token, process, candidate.fence, now, now, now + self.lease_seconds
        )

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        """Write how runs ended."""
        kept = await self.model.settle(marks)
        for mark, written in zip(marks, kept, strict=True):
            held = self.holdings.get(mark.identity)
            if written and held is not None and held.token == mark.token:
                del self.holdings[mark.identity]
        return kept

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        """Extend leases."""
        kept = await self.model.renew(leases)
        now = self.loop.time()
        for (identity, token, _), extended in zip(leases, kept, strict=True):
            held = self.holdings.get(identity)
            if extended and held is not None and held.token == token:
                held.renewed_at, held.until = now, now + self.lease_seconds
        return kept


class Connection:
    """One worker's way to Redis."""

    def __init__(self, redis: Redis, process: Process) -> None:
        self.network = Network()
        self.die_after_calls: int | None = None
        """Its process is killed once so many more scripts have run, before it learns of the last answer."""
        self._redis = redis
        self._process = process
        self._doubted: dict[str, float] = {}

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        granted: set[str] = set()
        now = self._redis.loop.time()
        doubted = {token for token, until in self._doubted.items() if until > now}

        async def script() -> list[Answer]:
            answers = await self._redis.admit(candidates, self._process, doubted | granted)
            granted.update(one.token for one in answers if isinstance(one, Run))
            # It may run after its caller gave up: what it granted must be known to be in doubt then, too.
            if gave_up:
                self._doubt(granted)
                self.network.troubles.append((now, self._redis.loop.time()))
            return answers

        gave_up = False
        try:
            return await self._call(script)
        except BaseException:
            gave_up = True
            self._doubt(granted)
            raise

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        return await self._call(lambda: self._redis.settle(marks))

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        return await self._call(lambda: self._redis.renew(leases))

    async def ahead(self, places: Sequence[InLine], *, overdue: datetime = EPOCH) -> list[datetime | None]:
        return await self._call(lambda: self._redis.model.ahead(places, overdue=overdue))

    async def keep_in_line(self, places: Sequence[tuple[InLine, datetime]]) -> None:
        await self._call(lambda: self._redis.model.keep_in_line(places))

    async def leave_lines(self, places: Sequence[InLine]) -> None:
        await self._call(lambda: self._redis.model.leave_lines(places))

    async def push(self, gate: str, wait: timedelta) -> None:
        await self._call(lambda: self._redis.model.push(gate, wait))

    async def lift(self, gate: str) -> None:
        await self._call(lambda: self._redis.model.lift(gate))

    async def present(self, worker: str, keep: timedelta) -> list[str]:
        return await self._call(lambda: self._redis.model.present(worker, keep))

    async def now(self) -> datetime:
        return await self._call(self._redis.model.now)

    async def completed(self, identities: Sequence[str]) -> list[bool]:
        return await self._call(lambda: self._redis.model.completed(identities))

    async def close(self) -> None:
        """Hang up."""

    def _doubt(self, tokens: set[str]) -> None:
        until = self._redis.loop.time() + 2 * self._redis.lease_seconds
        self._doubted.update((token, until) for token in tokens)

    async def _call(self, script: Callable[[], Coroutine[Any, Any, T]]) -> T:
        began = self._redis.loop.time()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await self._exchange(script)
                if answer is None:
                    answer = await self._exchange(script)
        except TimeoutError:
            answer = None
        ended = self._redis.loop.time()
        if answer is None or ended - began > 0.2:
            self.network.troubles.append((began, ended))
        if answer is None:
            raise AdmissionUnavailable("Redis cannot answer")
        return answer[0]

    async def _exchange(self, script: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T] | None:
        """Return the answer, or None when the connection broke before or after the script ran."""
        loop, chance, network = self._redis.loop, self._redis.chance, self.network
        now = loop.time()
        if network.down_until > now:
            await asyncio.sleep(chance.uniform(0.001, 0.02))
            return None
        delay = chance.uniform(0.0005, 0.003)
        if network.slow_until > now:
            delay = chance.uniform(0.1, 2 * TIMEOUT_SECONDS)
        lost = network.lossy_until > now and chance.random() < 0.5
        ended: asyncio.Future[tuple[T] | None] = loop.create_future()

        def run() -> None:
            # Between a request's arrival and the script's end nothing else happens in Redis.
            answer = at_once(script())
            if self.die_after_calls is not None:
                self.die_after_calls -= 1
                if self.die_after_calls <= 0:
                    self.die_after_calls = None
                    self._process.kill()
            outside(loop, chance.uniform(0.0005, 0.003), hear, None if lost else (answer,))

        def hear(answer: tuple[T] | None) -> None:
            if not ended.done():
                ended.set_result(answer)

        outside(loop, delay, run)
        return await ended


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("the model of admission waited")
