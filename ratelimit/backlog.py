"""How many unfinished jobs an organization has, and whether more may be published: a cap on its backlog.

A job counts from when it enters, before it is published, until it has ended by the ledger of admission, or for as
long as markers are kept. Only jobs of organizations that have a cap are counted, so a cap bounds the memory, too.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol

from redis.asyncio import ConnectionPool

from ratelimit.admission import EPOCH, MICROSECOND, MILLISECOND
from ratelimit.connection import pool_of
from ratelimit.model import ModelAdmission, utc_now
from ratelimit.server import TIMEOUT, Script, Server

BATCH_MAX: Final = 1_000
"""Most jobs per round trip."""

HELD_MAX: Final = timedelta(minutes=5)
UNKNOWN_WAIT: Final = timedelta(minutes=1)
"""When to try again while nothing is known of how fast an organization's jobs end."""

MINUTE_MS: Final = 60_000


class Asked(NamedTuple):
    """Jobs of one organization that are to be published, by their identities, and its cap."""

    organization: str
    cap: int
    identities: Sequence[str]


@dataclass(frozen=True, slots=True)
class Full:
    """None of an organization's jobs was let in: it has `count` unfinished ones and may have `cap`.

    After `retry_after` they may fit, if its jobs go on to end as fast as lately: 1 s to 5 min, 60 s when unknown.
    """

    cap: int
    count: int
    retry_after: timedelta


class Left(NamedTuple):
    """A job that has left a backlog, or may."""

    organization: str
    identity: str


class Backlog(Protocol):
    """Counts unfinished jobs; raises AdmissionUnavailable when it cannot answer now."""

    async def enter(self, asked: Sequence[Asked]) -> list[frozenset[str] | Full]:
        """Let the jobs of each organization in, all or none of them, and return which of them are new.

        Those that are in already, or have ended, count no second time and are no reason to refuse.
        """
        ...

    async def leave(self, jobs: Iterable[Left]) -> None:
        """Take out those of these jobs that neither run nor wait for another delivery, by the ledger."""
        ...

    async def take_back(self, jobs: Iterable[Left]) -> None:
        """Take out jobs that were not published after all."""
        ...

    async def count(self, organization: str) -> int:
        """Return how many unfinished jobs of an organization are counted."""
        ...

    async def close(self) -> None:
        """Release what the connection holds."""
        ...


class ModelBacklog:
    """Count in the memory of one process, by `clock` and the ledger of a model, for tests."""

    def __init__(
        self,
        ledger: ModelAdmission,
        *,
        keep: timedelta = timedelta(days=7),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._ledger = ledger
        self._keep = keep
        self._clock = clock
        self._entered: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
        self._ends: dict[str, tuple[int, int, int, int]] = {}
        """Since when in ms, and how many ended since; how many ms before that, and how many then."""

    async def enter(self, asked: Sequence[Asked]) -> list[frozenset[str] | Full]:
        """Let the jobs of each organization in, all or none of them, and return which of them are new."""
        return [self._enter(*one) for one in asked]

    def _enter(self, organization: str, cap: int, identities: Sequence[str]) -> frozenset[str] | Full:
        there = self._there(organization)
        new = {one for one in identities if one not in there and not self._ledger.ended(one)}
        if new and len(there) + len(new) > cap:
            for one in filter(self._ledger.ended, list(there)):
                del there[one]
        if new and (over := len(there) + len(new) - cap) > 0:
            return Full(cap, len(there), self._wait(organization, over))
        there.update(dict.fromkeys(new, self._clock()))
        return frozenset(new)

    def _there(self, organization: str) -> dict[str, datetime]:
        oldest, entered = self._clock() - self._keep, self._entered[organization]
        for identity in [one for one, at in entered.items() if at <= oldest]:
            del entered[identity]
        return entered

    def _wait(self, organization: str, over: int) -> timedelta:
        if organization not in self._ends:
            return UNKNOWN_WAIT
        since_ms, count, span_ms, before = self._ends[organization]
        took_ms = max(self._now_ms() - since_ms + span_ms, 1_000)
        wait = MILLISECOND * -(-over * took_ms // (count + before))
        return max(timedelta(seconds=1), min(HELD_MAX, wait))

    async def leave(self, jobs: Iterable[Left]) -> None:
        """Take out those of these jobs that neither run nor wait for another delivery, by the ledger."""
        for organization, identities in _by_organization(jobs).items():
            there = self._there(organization)
            gone = {one for one in identities if one in there and not self._ledger.unfinished(one)}
            for identity in gone:
                del there[identity]
            if gone:
                self._count_ends(organization, len(gone))

    def _count_ends(self, organization: str, number: int) -> None:
        now_ms = self._now_ms()
        since_ms, count, span_ms, before = self._ends.get(organization, (now_ms, 0, 0, 0))
        self._ends[organization] = since_ms, count + number, span_ms, before
        if now_ms - since_ms >= MINUTE_MS:
            self._ends[organization] = now_ms, 0, now_ms - since_ms, count + number

    async def take_back(self, jobs: Iterable[Left]) -> None:
        """Take out jobs that were not published after all."""
        for organization, identity in jobs:
            self._entered[organization].pop(identity, None)

    async def count(self, organization: str) -> int:
        """Return how many unfinished jobs of an organization are counted."""
        return len(self._there(organization))

    async def close(self) -> None:
        """Forget nothing: there is nothing to release."""

    def _now_ms(self) -> int:
        return (self._clock() - EPOCH) // MILLISECOND


class RedisBacklog:
    """Count in Redis, by its clock and the ledger that RedisAdmission keeps under the same prefix.

    Every round trip answers or raises AdmissionUnavailable within `timeout`. A job counts for as long as `keep`, the
    retention of markers. `clock` replaces Redis TIME, for tests only.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        prefix: str = "streams",
        keep: timedelta = timedelta(days=7),
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._server = Server(pool, timeout)
        self._prefix = f"{{{prefix}}}:"
        self._keep_ms = keep // MILLISECOND
        self._clock = clock
        self._enter = Script("clock", "backlog", "enter")
        self._leave = Script("clock", "backlog", "leave")

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        prefix: str = "streams",
        keep: timedelta = timedelta(days=7),
        timeout: timedelta = TIMEOUT,
        clock: Callable[[], datetime] | None = None,
    ) -> "RedisBacklog":
        """Return one for a URL such as RedisAdmission takes; it connects at the first call."""
        return cls(pool_of(url, timeout), prefix=prefix, keep=keep, timeout=timeout, clock=clock)

    async def enter(self, asked: Sequence[Asked]) -> list[frozenset[str] | Full]:
        """Let the jobs of each organization in, all or none of them, and return which of them are new."""
        new: list[set[str]] = [set() for _ in asked]
        full: dict[int, Full] = {}
        for pack in _packs([one.identities for one in asked]):
            pieces = [(number, piece) for number, piece in pack if number not in full]
            keys: list[str] = []
            arguments: list[Any] = [self._now(), self._keep_ms, f"{self._prefix}job:"]
            for number, piece in pieces:
                keys += self._keys(asked[number].organization)
                arguments += (asked[number].cap, len(piece), *piece)
            if not pieces:
                continue
            for (number, piece), answer in zip(
                pieces, await self._server.call(self._enter, keys, arguments), strict=True
            ):
                if isinstance(answer, bytes):
                    new[number].update(one for one, digit in zip(piece, answer, strict=True) if digit == 49)
                else:
                    wait = answer[1] * MILLISECOND or UNKNOWN_WAIT
                    full[number] = Full(asked[number].cap, answer[0] - len(new[number]), wait)
        # What came in before the last of an organization's jobs was refused goes out again.
        await self.take_back(Left(asked[number].organization, one) for number in full for one in new[number])
        return [full.get(number) or frozenset(one) for number, one in enumerate(new)]

    async def leave(self, jobs: Iterable[Left]) -> None:
        """Take out those of these jobs that neither run nor wait for another delivery, by the ledger."""
        of = _by_organization(jobs)
        organizations = list(of)
        for pack in _packs(list(of.values())):
            keys: list[str] = []
            arguments: list[Any] = [self._now(), f"{self._prefix}job:"]
            for number, piece in pack:
                keys += self._keys(organizations[number])
                arguments += (len(piece), *piece)
            await self._server.call(self._leave, keys, arguments)

    async def take_back(self, jobs: Iterable[Left]) -> None:
        """Take out jobs that were not published after all."""
        for organization, identities in _by_organization(jobs).items():
            for _, piece in chain.from_iterable(_packs([identities])):
                await self._server.execute("ZREM", self._keys(organization)[0], *piece)

    async def count(self, organization: str) -> int:
        """Return how many unfinished jobs of an organization are counted."""
        return int(await self._server.execute("ZCARD", self._keys(organization)[0]))

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    def _keys(self, organization: str) -> list[str]:
        return [f"{self._prefix}{part}:{organization}" for part in ("backlog", "ends")]

    def _now(self) -> int | str:
        return "" if self._clock is None else (self._clock() - EPOCH) // MICROSECOND


def _by_organization(jobs: Iterable[Left]) -> dict[str, list[str]]:
    of: defaultdict[str, list[str]] = defaultdict(list)
    for organization, identity in jobs:
        of[organization].append(identity)
    return of


def _packs(lists: Sequence[Sequence[str]]) -> Iterator[list[tuple[int, Sequence[str]]]]:
    """Yield pieces of lists, with the numbers of their lists, in packs of at most BATCH_MAX items."""
    pack: list[tuple[int, Sequence[str]]] = []
    room = BATCH_MAX
    for number, items in enumerate(lists):
        start = 0
        while start < len(items):
            piece = items[start : start + room]
            pack.append((number, piece))
            start += len(piece)
            room -= len(piece)
            if not room:
                yield pack
                pack, room = [], BATCH_MAX
    if pack:
        yield pack
