"""The vocabulary of admission: what is asked, what is answered, and the protocol between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeAlias

MICROSECOND = timedelta(microseconds=1)
MILLISECOND = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REFILL_MAX = timedelta(days=3650)


class AdmissionUnavailable(Exception):
    """The ledger cannot answer now: unreachable, timed out, loading, read-only or out of memory.

    Whether the batch was carried out is unknown. Ask again with the same candidates or marks: a lease that
    was granted without its answer arriving is granted again, a mark that was written is True again.
    """


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` each `per` in the long run, and at most `burst` at once (`count` when None).

    `name` is its identity in the ledger: limits with one name share one allowance, so its numbers may change
    while it is in use. The interval between two is rounded up to a whole microsecond.
    """

    name: str
    count: int
    per: timedelta
    burst: int | None = None
    interval_us: int = field(init=False, repr=False, compare=False)
    capacity: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1 or self.per < MICROSECOND:
            raise ValueError(
                f"limit {self.name!r} allows {self.count} each {self.per}; both must be above zero"
            )
        capacity = self.count if self.burst is None else self.burst
        if capacity < 1:
            raise ValueError(f"limit {self.name!r} has a burst of {capacity}; it must be at least 1")
        interval_us = -(-(self.per // MICROSECOND) // self.count)
        if interval_us * capacity > REFILL_MAX // MICROSECOND:
            raise ValueError(
                f"limit {self.name!r} would need more than {REFILL_MAX.days} days to refill its burst"
            )
        object.__setattr__(self, "interval_us", interval_us)
        object.__setattr__(self, "capacity", capacity)


@dataclass(slots=True)
class Candidate:
    """One delivery that asks to run.

    `identity()` makes the name of its job, `fence()` a fence: a text that grows with every delivery that was
    chosen (retry, snooze, replay) and is compared byte by byte. `cost` is taken from every one
    of the limits, or from none.
    """

    identity: str
    fence: str
    limits: tuple[Limit, ...] = ()
    cost: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Run it under the lease `token`; `crashes` counts the leases lost on it since it last settled."""

    token: str
    crashes: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Drop it: the job is finished, or a later delivery of it has taken over."""


@dataclass(frozen=True, slots=True)
class Leased:
    """Another delivery of the job holds the lease, for `retry_after` unless it is renewed."""

    retry_after: timedelta


@dataclass(frozen=True, slots=True)
class Limited:
    """Nothing was taken; it would fit after `retry_after`. `by` names the limit that frees last."""

    retry_after: timedelta
    by: str


Answer: TypeAlias = Run | Duplicate | Leased | Limited


@dataclass(frozen=True, slots=True)
class Done:
    """The job never runs again while its marker lives."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job runs again in a delivery whose fence is `fence` or greater."""

    fence: str


@dataclass(frozen=True, slots=True)
class Released:
    """The lease is given back unused: the same delivery may run again. What it took of limits stays taken."""


@dataclass(slots=True)
class Mark:
    """How a run ended, signed with the token of its lease."""

    identity: str
    token: str
    end: Done | Waiting | Released


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a job in a line whose jobs run one after the other: a lower rank comes first."""

    line: str
    rank: int


class Admission(Protocol):
    """Answers in batches and in order; raises AdmissionUnavailable and never waits for a limit or a lease."""

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """Answer whether each may run now, leasing those that may; each sees what those before it took.

        Raises ValueError, with nothing taken, when a cost can never fit.
        """
        ...

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        """Write how runs ended; False where the lease was lost to another delivery, and nothing changed."""
        ...

    async def renew(self, leases: Sequence[tuple[str, str]]) -> list[bool]:
        """Extend leases, given as (identity, token); False where the lease was lost."""
        ...

    async def ahead(self, places: Sequence[Place]) -> list[datetime | None]:
        """Return for each place when the first job that is kept ahead of it is due; None when there is none."""
        ...

    async def keep_places(self, places: Sequence[tuple[Place, datetime]]) -> None:
        """Keep the places of jobs that wait elsewhere, each until it is left; given with when the job is due."""
        ...

    async def leave_places(self, places: Sequence[tuple[Place, str, bool]]) -> None:
        """Leave the places of jobs that have ended, by the ledger; given with their identities.

        The third says whether the place is left, too, when its job waits for another delivery.
        """
        ...

    async def now(self) -> datetime:
        """Return what time it is for the ledger."""
        ...

    async def completed(self, identities: Sequence[str]) -> list[bool]:
        """Tell which jobs are marked done."""
        ...

    async def close(self) -> None:
        """Release what the connection holds."""
        ...


def identity(organization_id: str, key: str) -> str:
    """Return the identity of a job: its idempotency key or job id, within its organization and no other."""
    if ":" in organization_id or "%" in organization_id:
        organization_id = organization_id.replace("%", "%25").replace(":", "%3A")
    return f"{organization_id}:{key}"


def fence(replay_id: str, attempt: int, snoozes: int) -> str:
    """Return the fence of a delivery; `replay_id` is '' or the UUIDv7 of the operators' replay it belongs to.

    Add "~" for the fence that only a later replay passes.
    """
    # "-" sorts before every digit, so that a delivery without a replay stays below one with any.
    return f"{replay_id}-{attempt:06d}-{snoozes:06d}"


def check_cost(limits: tuple[Limit, ...], cost: int) -> None:
    """Raise ValueError when a job of this cost could never fit its limits."""
    if cost < 1:
        raise ValueError(f"a job costs {cost}; the least is 1")
    if len({limit.name for limit in limits}) < len(limits):
        raise ValueError(f"a job names one limit twice: {', '.join(limit.name for limit in limits)}")
    for limit in limits:
        if cost > limit.capacity:
            raise ValueError(
                f"a job costs {cost} but limit {limit.name!r} never allows over {limit.capacity} at once"
            )
