"""Admission kept in Redis (7 or later) or Valkey, shared by every worker."""

import asyncio
import hashlib
import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any, Final, TypeVar

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from ratelimit.admission import (
    EPOCH,
    MICROSECOND,
    MILLISECOND,
    AdmissionUnavailable,
    Answer,
    Candidate,
    Done,
    Duplicate,
    Leased,
    Limit,
    Limited,
    Mark,
    Released,
    Run,
    Waiting,
    check_cost,
)

BATCH_MAX: Final = 1_000
"""Jobs per round trip: the whole server waits while a script runs, so a longer batch goes in parts."""

DOUBTED_MAX: Final = 256
UNAVAILABLE: Final = (
    ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError, MasterDownError, ClusterDownError,
    TryAgainError, OSError,
)  # fmt: skip
UNAVAILABLE_CODES: Final = frozenset({"BUSY", "MISCONF", "NOREPLICAS"})
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
        timeout: timedelta = timedelta(seconds=2),
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if not MILLISECOND <= lease < marker:
            raise ValueError(f"the marker retention ({marker}) must exceed the lease ({lease}), from 1 ms up")
        self._pool = pool
        self._job_prefix = f"{{{prefix}}}:job:"
        self._limit_prefix = f"{{{prefix}}}:limit:"
        self._lease = lease
        self._lease_ms = lease // MILLISECOND
        self._marker_ms = marker // MILLISECOND
        self._timeout_s = timeout.total_seconds()
        self._clock = clock
        self._admit, self._settle, self._renew = Script("admission"), Script("settle"), Script("renew")
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
        timeout: timedelta = timedelta(seconds=2),
        clock: Callable[[], datetime] | None = None,
    ) -> "RedisAdmission":
        """Return one for a `redis://`, `rediss://` or `unix://` URL; it connects at the first call.

        User, password and database are part of the URL: `rediss://user:password@host:6379/0`.
        """
        pool = ConnectionPool.from_url(
            url,
            socket_connect_timeout=timeout.total_seconds(),
            socket_timeout=None,  # each call has one deadline over all it does
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),  # of connecting; whoever asked asks again
        )
        return cls(pool, prefix=prefix, lease=lease, marker=marker, timeout=timeout, clock=clock)

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """Answer whether each may run now, leasing those that may; each sees what those before it took.

        Raises ValueError, with nothing taken, when a cost can never fit.
        """
        token = f"{self._owner}{next(self._batches):x}"
        batches = [self._pack(part, token) for part in _parts(candidates)]
        run = Run(token, 0)
        answers: list[Answer] = []
        try:
            for keys, arguments, names in batches:
                reply = await self._call(self._admit, keys, arguments)
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
            keys = [prefix + mark.identity for mark in part]
            arguments: list[Any] = [self._marker_ms]
            for mark in part:
                arguments += (mark.token, _code(mark.end))
            written += _flags(await self._call(self._settle, keys, arguments))
        return written

    async def renew(self, leases: Sequence[tuple[str, str]]) -> list[bool]:
        """Extend leases, given as (identity, token); False where the lease was lost."""
        extended: list[bool] = []
        for part in _parts(leases):
            keys = [self._job_prefix + identity for identity, _ in part]
            arguments = [self._now(), self._lease_ms, self._marker_ms, *(token for _, token in part)]
            extended += _flags(await self._call(self._renew, keys, arguments))
        return extended

    async def completed(self, identities: Sequence[str]) -> list[bool]:
        """Tell which jobs are marked done."""
        done: list[bool] = []
        for part in _parts(identities):
            values = await self._execute("MGET", *[self._job_prefix + identity for identity in part])
            done += [value is not None and value.startswith(b"d") for value in values]
        return done

    async def ping(self) -> None:
        """Return when the server answers; raise AdmissionUnavailable when it does not."""
        await self._execute("PING")

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

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
            arguments += (limit.interval_us, limit.capacity)
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

    async def _call(self, script: "Script", keys: list[str], arguments: Iterable[Any]) -> Any:
        try:
            return await self._execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._execute("EVAL", script.source, len(keys), *keys, *arguments)

    async def _execute(self, *command: Any) -> Any:
        # hiredis packs a batch in a tenth of the time that the client's own packing takes.
        packed = pack_command(command)
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._exchange(packed)
                except ConnectionError:
                    # The server may have closed the connection while it was idle. Scripts bear repeating.
                    return await self._exchange(packed)
        except UNAVAILABLE as error:
            why = str(error) or f"no answer within {self._timeout_s:g} s"
            raise AdmissionUnavailable(f"Redis cannot answer: {why}") from error
        except ResponseError as error:
            if str(error).partition(" ")[0] in UNAVAILABLE_CODES:
                raise AdmissionUnavailable(f"Redis cannot answer: {error}") from error
            raise

    async def _exchange(self, packed: bytes) -> Any:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(packed)
            return await connection.read_response(disable_decoding=True)
        finally:
            await self._pool.release(connection)


class Script:
    """A Lua file of this package and the hash under which the server knows it."""

    __slots__ = ("sha", "source")

    def __init__(self, name: str) -> None:
        self.source = files("ratelimit").joinpath(f"{name}.lua").read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


class Plans:
    """The limits that one batch names, each sent once, and the code of each cost with its limits."""

    __slots__ = ("_codes", "_numbers", "limits")

    def __init__(self) -> None:
        self.limits: list[Limit] = []
        # By the id of the tuple, which its candidate keeps alive: hashing a limit costs more than sending it.
        self._codes: dict[tuple[int, int], str] = {}
        self._numbers: dict[int, int] = {}

    def code(self, limits: tuple[Limit, ...], cost: int) -> str:
        """Return `cost:limit,limit`, counting limits from 1, or '' without; ValueError if it never fits."""
        key = (id(limits), cost)
        code = self._codes.get(key)
        if code is None:
            check_cost(limits, cost)
            numbers = ",".join([str(self._number(limit)) for limit in limits])
            code = self._codes[key] = f"{cost}:{numbers}" if limits else ""
        return code

    def _number(self, limit: Limit) -> int:
        number = self._numbers.get(id(limit))
        if number is None:
            self.limits.append(limit)
            number = self._numbers[id(limit)] = len(self.limits)
        return number


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
