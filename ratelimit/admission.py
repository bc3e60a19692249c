"""The vocabulary of admission: what is asked, what is answered, and the protocol between them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `most` jobs at a time, on all workers together.

    Each holds a place for as long as its lease; the place is free again when it settles, when it is released, or when
    its lease runs out.
    """

    name: str
    most: int

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"limit {self.name!r} allows {self.most} at a time; the least is 1")


@dataclass(frozen=True, slots=True)
class Gate:
    """Open, unless `Admission.push` has shut it for a while: nothing that names it is admitted then."""

    name: str


Limits: TypeAlias = tuple[Limit | Concurrency | Gate, ...]
"""What one job is held to. Names are unique, whatever the kind.

Pass the same tuple for all jobs that are held to the same: what a batch costs grows with the number of tuples in it.
"""


@dataclass(slots=True)
class Candidate:
    """One delivery that asks to run.

    `identity()` makes the name of its job, `fence()` a fence: a text that grows with every delivery that was
    chosen (retry, snooze, replay) and is compared byte by byte. `cost` is taken from every rate, and one
    place of every concurrency, of all limits or of none.
    """

    identity: str
    fence: str
    limits: Limits = ()
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
    """Nothing was taken; it would fit after `retry_after`. `by` names the limit that frees last.

    A concurrency is named only when no rate or gate stands against the job, and then the wait is the longest there
    can be: until leases run out that are not renewed. A place that is given back earlier is free earlier.
    """

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
    """How a run ended, signed with the token of its lease; its places in `limits` are given back."""

    identity: str
    token: str
    end: Done | Waiting | Released
    limits: Limits = ()


class Lease(NamedTuple):
    """A lease that was granted, and the limits whose places are kept with it."""

    identity: str
    token: str
    limits: Limits = ()


@dataclass(frozen=True, slots=True)
class InLine:
    """The place in a line, whose jobs run one after the other, of a delivery: a lower rank comes first."""

    line: str
    rank: int
    identity: str
    fence: str


class Admission(Protocol):
    """Answers in batches and in order; raises AdmissionUnavailable and never waits for a limit or a lease."""

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """Answer whether each may run now, leasing those that may; each sees what those before it took.

        Raises ValueError, with nothing taken, when a cost can never fit or limits contradict each other.
        """
        ...

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        """Write how runs ended; False where the lease was lost to another delivery, and nothing changed."""
        ...

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        """Extend leases and keep their places; False where the lease was lost."""
        ...

    async def push(self, gate: str, wait: timedelta) -> None:
        """Shut a gate for so long from now, or for longer if it is shut for longer already."""
        ...

    async def lift(self, gate: str) -> None:
        """Open a gate."""
        ...

    async def present(self, worker: str, keep: timedelta) -> list[str]:
        """Say that a worker lives, for so long from now, and return all that live; zero says that it leaves."""
        ...

    async def ahead(self, places: Sequence[InLine], *, overdue: datetime = EPOCH) -> list[datetime | None]:
        """Return for each place when the first job that is kept ahead of it is due; None when there is none.

        What was due before `overdue` counts no more.
        """
        ...

    async def keep_in_line(self, places: Sequence[tuple[InLine, datetime]]) -> None:
        """Keep the places of deliveries that wait elsewhere; given with when each is due.

        A place is kept until the ledger knows of its job's end, or of a later delivery that does not keep it.
        """
        ...

    async def leave_lines(self, places: Sequence[InLine]) -> None:
        """Forget places that are kept no longer, by the ledger; they count no more, whether this is asked or not."""
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


def check_limits(limits: Limits, cost: int) -> None:
    """Raise ValueError when a job of this cost could never fit its limits, or names one twice."""
    if cost < 1:
        raise ValueError(f"a job costs {cost}; the least is 1")
    if len({limit.name for limit in limits}) < len(limits):
        raise ValueError(f"a job names one limit twice: {', '.join(limit.name for limit in limits)}")
    for limit in limits:
        if isinstance(limit, Limit) and cost > limit.capacity:
            raise ValueError(
                f"a job costs {cost} but limit {limit.name!r} never allows over {limit.capacity} at once"
            )


class Plans:
    """The limits that one batch names, each once, and how each job names those it is held to.

    Raises ValueError when a cost never fits, or a batch gives one limit two sets of numbers.
    """

    __slots__ = ("_codes", "_numbers", "limits")

    def __init__(self) -> None:
        self.limits: list[Limit | Concurrency | Gate] = []
        # By the id of the tuple, which its candidate keeps alive: hashing a limit costs more than sending it.
        self._codes: dict[tuple[int, int], str] = {}
        self._numbers: dict[str, int] = {}

    def code(self, limits: Limits, cost: int) -> str:
        """Return `cost:limit,limit`, counting limits from 1, or '' without any."""
        key = (id(limits), cost)
        code = self._codes.get(key)
        if code is None:
            check_limits(limits, cost)
            numbers = ",".join([str(self._number(limit)) for limit in limits])
            code = self._codes[key] = f"{cost}:{numbers}" if limits else ""
        return code

    def _number(self, limit: Limit | Concurrency | Gate) -> int:
        number = self._numbers.get(limit.name)
        if number is None:
            self.limits.append(limit)
            number = self._numbers[limit.name] = len(self.limits)
        elif self.limits[number - 1] != limit:
            raise ValueError(f"one batch has two of limit {limit.name!r}: {self.limits[number - 1]}, {limit}")
        return number


class Places:
    """The concurrency limits in which the jobs of one batch hold places, by name, each once."""

    __slots__ = ("_codes", "_numbers")

    def __init__(self) -> None:
        self._codes: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self._numbers)

    def code(self, limits: Limits) -> str:
        """Return `place,place`, counting from 1, or '' without any."""
        code = self._codes.get(id(limits))
        if code is None:
            numbers = [
                self._numbers.setdefault(one.name, len(self._numbers) + 1)
                for one in limits
                if isinstance(one, Concurrency)
            ]
            code = self._codes[id(limits)] = ",".join(map(str, numbers))
        return code
