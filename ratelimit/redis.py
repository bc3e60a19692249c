"""Admission kept in Redis (7 or later) or Valkey, shared by every worker."""

import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from redis.asyncio import ConnectionPool

from ratelimit.admission import (
    EPOCH,
    MICROSECOND,
    MILLISECOND,
    Answer,
    Candidate,
    Concurrency,
    Done,
    Duplicate,
    Gate,
    InLine,
    Lease,
    Leased,
    Limit,
    Limited,
    Limits,
    Mark,
    Places,
    Plans,
    Released,
    Run,
    Waiting,
)
from ratelimit.connection import pool_of
from ratelimit.server import TIMEOUT, Script, Server
from ratelimit.views import Known, Left, gate_left, places_left, rate_left

BATCH_MAX: Final = 1_000
"""Jobs per round trip: the whole server waits while a script runs, so a longer batch goes in parts."""

DOUBTED_MAX: Final = 256
DUPLICATE: Final = Duplicate()
T = TypeVar("T")


class RedisAdmission:
    """Keep the ledger and the limits in Redis, by its clock.

    Every round trip answers or raises AdmissionUnavailable within `timeout`. All keys start with `{prefix}`, so
    that they share one slot of a cluster. The server must not evict keys (`maxmemory-policy noeviction`): an
    evicted marker lets its job run again. `clock` replaces Redis TIME, for tests only.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        prefix: str = "streams",
        lease: timedelta = timedelta(seconds=30),
        marker: timedelta = timedelta(days=7),
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if not MILLISECOND <= lease < marker:
            raise ValueError(f"the marker retention ({marker}) must exceed the lease ({lease}), from 1 ms up")
        self._server = Server(pool, timeout)
        self._job_prefix = f"{{{prefix}}}:job:"
        self._limit_prefix = f"{{{prefix}}}:limit:"
        self._line_prefix = f"{{{prefix}}}:line:"
        self._workers = f"{{{prefix}}}:workers"
        self._lease = lease
        self._lease_ms = lease // MILLISECOND
        self._marker_ms = marker // MILLISECOND
        self._clock = clock
        self._admit = Script("clock", "ledger", "limits", "admission")
        self._settle = Script("ledger", "places", "settle")
        self._renew = Script("clock", "ledger", "places", "renew")
        self._push = Script("clock", "push")
        self._present = Script("clock", "present")
        self._lines = Script("ledger", "lines")
        self._owner = secrets.token_urlsafe(6)
        self._batches = itertools.count()
        self._doubted: dict[str, float] = {}

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "streams",
        lease: timedelta = timedelta(seconds=30),
        marker: timedelta = timedelta(days=7),
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> "RedisAdmission":
        """Return one for a URL such as `ratelimit.connection` lists; it connects at the first call."""
        return cls(
            pool_of(url, timeout), prefix=prefix, lease=lease, marker=marker, timeout=timeout, clock=clock
        )

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """Answer whether each may run now, leasing those that may; each sees what those before it took.

        Raises ValueError, with nothing taken, when a cost can never fit or limits contradict each other.
        """
        token = f"{self._owner}{next(self._batches):x}"
        batches = [self._pack(part, token) for part in _parts(candidates)]
        run = Run(token, 0)
        answers: list[Answer] = []
        try:
            for keys, arguments, names in batches:
                reply = await self._server.call(self._admit, keys, arguments)
                answers += _answers(reply, run, names)
        except BaseException:
            # Nobody will hear of what this batch was granted: let the next one take it over.
            self._doubt(token)
            raise
        return answers

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        """Write how runs ended; False where the lease was lost to another delivery, and nothing changed."""
        prefix = self._job_prefix
        written: list[bool] = []
        for part in _parts(marks):
            places = Places()
            keys = [prefix + mark.identity for mark in part]
            arguments: list[Any] = [self._marker_ms, len(part)]
            for mark in part:
                arguments += (mark.token, _code(mark.end))
            self._add_places(keys, arguments, [places.code(mark.limits) for mark in part], places)
            written += _flags(await self._server.call(self._settle, keys, arguments))
        return written

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        """Extend leases and keep their places; False where the lease was lost."""
        extended: list[bool] = []
        for part in _parts(leases):
            places = Places()
            keys = [self._job_prefix + lease.identity for lease in part]
            arguments = [self._now(), self._lease_ms, self._marker_ms, len(part)]
            arguments += [lease.token for lease in part]
            self._add_places(keys, arguments, [places.code(lease.limits) for lease in part], places)
            extended += _flags(await self._server.call(self._renew, keys, arguments))
        return extended

    async def ahead(self, places: Sequence[InLine], *, overdue: datetime = EPOCH) -> list[datetime | None]:
        """Return for each place when the first job that is kept ahead of it is due; None when there is none.

        What was due before `overdue` counts no more.
        """
        found: list[datetime | None] = []
        for part in _parts(places):
            since_ms = (overdue - EPOCH) // MILLISECOND
            reply = await self._line_up("ahead", since_ms, part, [place.rank for place in part])
            found += [EPOCH + int(due_ms) * MILLISECOND if due_ms else None for due_ms in reply]
        return found

    async def keep_in_line(self, places: Sequence[tuple[InLine, datetime]]) -> None:
        """Keep the places of deliveries that wait elsewhere; given with when each is due.

        A place is kept until the ledger knows of its job's end, or of a later delivery that does not keep it.
        """
        for part in _parts(places):
            arguments: list[Any] = []
            for place, due in part:
                arguments += (place.rank, (due - EPOCH) // MILLISECOND, place.fence, place.identity)
            await self._line_up("keep", self._marker_ms, [place for place, _ in part], arguments)

    async def leave_lines(self, places: Sequence[InLine]) -> None:
        """Forget places that are kept no longer, by the ledger; they count no more, whether this is asked or not."""
        for part in _parts(places):
            await self._line_up("leave", 0, part, [place.rank for place in part])

    async def _line_up(
        self, what: str, period_ms: int, places: Sequence[InLine], arguments: Sequence[Any]
    ) -> Any:
        keys = [self._line_prefix + place.line for place in places]
        return await self._server.call(self._lines, keys, [what, self._job_prefix, period_ms, *arguments])

    def _add_places(self, keys: list[str], arguments: list[Any], codes: list[str], places: Places) -> None:
        names = places.names
        if names:
            keys += [self._limit_prefix + name for name in names]
            arguments += codes

    async def push(self, gate: str, wait: timedelta) -> None:
        """Shut a gate for so long from now, or for longer if it is shut for longer already."""
        arguments = [self._now(), wait // MICROSECOND]
        await self._server.call(self._push, [self._limit_prefix + gate], arguments)

    async def lift(self, gate: str) -> None:
        """Open a gate."""
        await self._server.execute("DEL", self._limit_prefix + gate)

    async def present(self, worker: str, keep: timedelta) -> list[str]:
        """Say that a worker lives, for so long from now, and return all that live; zero says that it leaves."""
        arguments = [self._now(), worker, keep // MILLISECOND]
        return [name.decode() for name in await self._server.call(self._present, [self._workers], arguments)]

    async def completed(self, identities: Sequence[str]) -> list[bool]:
        """Tell which jobs are marked done."""
        done: list[bool] = []
        for part in _parts(identities):
            values = await self._server.execute("MGET", *[self._job_prefix + identity for identity in part])
            done += [value is not None and value.startswith(b"d") for value in values]
        return done

    async def now(self) -> datetime:
        """Return what time it is for the ledger."""
        if self._clock is not None:
            return self._clock()
        seconds, microseconds = await self._server.execute("TIME")
        return EPOCH + timedelta(seconds=int(seconds), microseconds=int(microseconds))

    async def known(self, identity: str) -> Known | None:
        """Return what the ledger knows of a job, by its identity; None when that is nothing."""
        value = await self._server.execute("GET", self._job_prefix + identity)
        return None if value is None else Known.of_text(value.decode())

    async def left(self, limits: Limits) -> list[Left]:
        """Return what is left of each limit, in their order."""
        now = await self.now()
        return [await self._left(limit, now) for limit in limits]

    async def _left(self, limit: Limit | Concurrency | Gate, now: datetime) -> Left:
        key = self._limit_prefix + limit.name
        if isinstance(limit, Concurrency):
            kept = await self._server.execute("HGETALL", key)
            # By the protocol of the connection, a map or a list. The sum of places is a number alone.
            values = [value.split() for value in (kept.values() if isinstance(kept, dict) else kept[1::2])]
            held = [value for value in values if len(value) == 2]
            places = [(int(count), EPOCH + int(ends_ms) * MILLISECOND) for count, ends_ms in held]
            return places_left(limit, places, now)
        kept_us = int(await self._server.execute("GET", key) or 0)
        if isinstance(limit, Limit):
            return rate_left(limit, kept_us, now)
        return gate_left(limit, EPOCH + kept_us * MICROSECOND, now)

    async def living(self) -> list[str]:
        """Return the workers that said they live and whose word still holds."""
        now_ms = (await self.now() - EPOCH) // MILLISECOND
        found = await self._server.execute("ZRANGEBYSCORE", self._workers, f"({now_ms}", "+inf")
        return [name.decode() for name in found]

    async def ping(self) -> None:
        """Return when the server answers; raise AdmissionUnavailable when it does not."""
        await self._server.execute("PING")

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    def _pack(self, candidates: Sequence[Candidate], token: str) -> tuple[list[str], list[Any], list[str]]:
        """Return the keys and arguments of admission.lua, and the names of the limits in their order."""
        prefix = self._job_prefix
        keys = [prefix + candidate.identity for candidate in candidates]
        arguments: list[Any] = [
            self._now(), self._lease_ms, self._marker_ms, token, self._doubts(), len(candidates),
        ]  # fmt: skip
        plans = Plans()
        codes = [plans.code(candidate.limits, candidate.cost) for candidate in candidates]
        names: list[str] = []
        for limit in plans.limits:
            keys.append(self._limit_prefix + limit.name)
            arguments += _numbers(limit)
            names.append(limit.name)
        arguments += [candidate.fence for candidate in candidates]
        if names:
            arguments += codes
        return keys, arguments, names

    def _doubt(self, token: str) -> None:
        now = time.monotonic()
        self._doubted = {doubted: until for doubted, until in self._doubted.items() if until > now}
        if len(self._doubted) >= DOUBTED_MAX:
            del self._doubted[next(iter(self._doubted))]
        # Twice the lease: the script may run late, and a lease taken over after it ran out counts as a crash.
        self._doubted[token] = now + 2 * self._lease.total_seconds()

    def _doubts(self) -> str:
        if not self._doubted:
            return ""
        now = time.monotonic()
        return "".join(f" {token} " for token, until in self._doubted.items() if until > now)

    def _now(self) -> int | str:
        return "" if self._clock is None else (self._clock() - EPOCH) // MICROSECOND


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    if len(items) <= BATCH_MAX:
        return [items] if items else []
    return [items[start : start + BATCH_MAX] for start in range(0, len(items), BATCH_MAX)]


def _answers(reply: list[Any], run: Run, names: list[str]) -> list[Answer]:
    letters: bytes = reply[0]
    if len(reply) == 1 and letters.count(b"R") == len(letters):
        return [run] * len(letters)
    details = iter(reply[1:])
    answers: list[Answer] = []
    for letter in letters.decode():
        match letter:
            case "R":
                answers.append(run)
            case "D":
                answers.append(DUPLICATE)
            case "C":
                answers.append(Run(run.token, next(details)))
            case "L":
                answers.append(Leased(timedelta(microseconds=next(details))))
            case _:
                wait = timedelta(microseconds=next(details))
                answers.append(Limited(wait, names[next(details) - 1]))
    return answers


def _numbers(limit: Limit | Concurrency | Gate) -> tuple[int, int]:
    match limit:
        case Limit():
            return limit.interval_us, limit.capacity
        case Concurrency():
            return 0, limit.most
        case Gate():
            return 0, 0


def _flags(digits: bytes) -> list[bool]:
    return [digit == 49 for digit in digits]  # b"1"


def _code(end: Done | Waiting | Released) -> str:
    match end:
        case Done():
            return "d"
        case Waiting(fence):
            return "w" + fence
        case Released():
            return "r"
