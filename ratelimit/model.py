"""Admission in the memory of one process: the rules in plain Python, for tests."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from ratelimit.admission import (
    EPOCH,
    MILLISECOND,
    Answer,
    Candidate,
    Done,
    Duplicate,
    InLine,
    Lease,
    Leased,
    Limits,
    Mark,
    Plans,
    Released,
    Run,
    Waiting,
)
from ratelimit.allowances import Allowances
from ratelimit.views import Known, Left


def utc_now() -> datetime:
    """Return the wall clock of this machine."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger knows of one job; `until` is the end of its lease."""

    state: Literal["done", "leased", "waiting"]
    token: str
    fence: str
    crashes: int
    until: datetime
    forgotten_at: datetime


class ModelAdmission:
    """Keep the ledger and the limits in memory, by `clock`.

    Nothing here loses an answer on its way, so unlike in Redis no batch is recognised as asked before.
    """

    def __init__(
        self,
        *,
        lease: timedelta = timedelta(seconds=30),
        marker: timedelta = timedelta(days=7),
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if not MILLISECOND <= lease < marker:
            raise ValueError(f"the marker retention ({marker}) must exceed the lease ({lease}), from 1 ms up")
        self._lease = lease
        self._marker = marker
        self._clock = clock
        self._ledger: dict[str, Entry] = {}
        self._allowances = Allowances()
        self._workers: dict[str, datetime] = {}
        self._batches = itertools.count()
        self._lines: dict[str, dict[int, tuple[InLine, datetime]]] = {}

    async def admit(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """Answer whether each may run now, leasing those that may; each sees what those before it took.

        Raises ValueError, with nothing taken, when a cost can never fit or limits contradict each other.
        """
        plans = Plans()
        for candidate in candidates:
            plans.code(candidate.limits, candidate.cost)
        now = self._clock()
        token = f"model{next(self._batches):x}"
        return [self._answer(candidate, token, now) for candidate in candidates]

    async def settle(self, marks: Sequence[Mark]) -> list[bool]:
        """Write how runs ended; False where the lease was lost to another delivery, and nothing changed."""
        now = self._clock()
        written = []
        for mark in marks:
            entry = self._entry(mark.identity, now)
            written.append(self._settled(mark, now))
            if written[-1] and entry is not None and entry.state == "leased":
                self._allowances.give_back(mark.token, mark.limits)
        return written

    async def renew(self, leases: Sequence[Lease]) -> list[bool]:
        """Extend leases and keep their places; False where the lease was lost."""
        now = self._clock()
        extended = [self._renewed(lease, now) for lease in leases]
        kept = [(one.token, one.limits) for one, held in zip(leases, extended, strict=True) if held]
        self._allowances.keep(kept, now, self._lease_ends(now))
        return extended

    async def push(self, gate: str, wait: timedelta) -> None:
        """Shut a gate for so long from now, or for longer if it is shut for longer already."""
        self._allowances.shut(gate, self._clock() + wait)

    async def lift(self, gate: str) -> None:
        """Open a gate."""
        self._allowances.open(gate)

    async def present(self, worker: str, keep: timedelta) -> list[str]:
        """Say that a worker lives, for so long from now, and return all that live."""
        now = self._clock()
        self._workers[worker] = now + keep
        self._workers = {name: until for name, until in self._workers.items() if until > now}
        return sorted(self._workers, key=lambda name: (self._workers[name], name))

    async def known(self, identity: str) -> Known | None:
        """Return what the ledger knows of a job, by its identity; None when that is nothing."""
        entry = self._entry(identity, self._clock())
        if entry is None:
            return None
        if entry.state == "done":
            return Known("done")
        until = entry.until if entry.state == "leased" else None
        return Known(entry.state, entry.fence, entry.crashes, until)

    async def left(self, limits: Limits) -> list[Left]:
        """Return what is left of each limit, in their order."""
        return [self._allowances.left(limit, self._clock()) for limit in limits]

    async def living(self) -> list[str]:
        """Return the workers that said they live and whose word still holds."""
        now = self._clock()
        return sorted(name for name, until in self._workers.items() if until > now)

    async def now(self) -> datetime:
        """Return what time it is for the ledger."""
        return self._clock()

    async def completed(self, identities: Sequence[str]) -> list[bool]:
        """Tell which jobs are marked done."""
        now = self._clock()
        entries = [self._entry(identity, now) for identity in identities]
        return [entry is not None and entry.state == "done" for entry in entries]

    def ended(self, identity: str) -> bool:
        """Return whether a job is done, or shut to all but a later replay."""
        entry = self._entry(identity, self._clock())
        return entry is not None and not self.unfinished(identity)

    def unfinished(self, identity: str) -> bool:
        """Return whether a job runs, or waits for another delivery."""
        entry = self._entry(identity, self._clock())
        waits = entry is not None and entry.state == "waiting" and not entry.fence.endswith("~")
        return waits or (entry is not None and entry.state == "leased")

    async def ahead(self, places: Sequence[InLine], *, overdue: datetime = EPOCH) -> list[datetime | None]:
        """Return for each place when the first job that is kept ahead of it is due; None when there is none.

        What was due before `overdue` counts no more.
        """
        found: list[datetime | None] = []
        for place in places:
            kept = self._lines.get(place.line, {})
            before = [
                kept[rank][1]
                for rank in sorted(kept)
                if rank < place.rank and kept[rank][1] >= overdue and not self._over(kept[rank][0])
            ]
            found.append(before[0] if before else None)
        return found

    async def keep_in_line(self, places: Sequence[tuple[InLine, datetime]]) -> None:
        """Keep the places of deliveries that wait elsewhere; given with when each is due.

        A place is kept until the ledger knows of its job's end, or of a later delivery that does not keep it.
        """
        for place, due in places:
            line = self._lines.setdefault(place.line, {})
            if place.rank not in line or line[place.rank][0].fence <= place.fence:
                line[place.rank] = place, due

    async def leave_lines(self, places: Sequence[InLine]) -> None:
        """Forget places that are kept no longer, by the ledger; they count no more, whether this is asked or not."""
        for place in places:
            line = self._lines.get(place.line, {})
            if place.rank in line and self._over(line[place.rank][0]):
                del line[place.rank]

    def _over(self, place: InLine) -> bool:
        entry = self._entry(place.identity, self._clock())
        return entry is not None and (entry.state == "done" or place.fence < entry.fence)

    async def close(self) -> None:
        """Forget nothing: there is nothing to release."""

    def flush(self) -> None:
        """Lose everything, as Redis does on FLUSHALL."""
        self._ledger.clear()
        self._allowances = Allowances()
        self._workers.clear()
        self._lines.clear()

    def _answer(self, candidate: Candidate, token: str, now: datetime) -> Answer:
        entry = self._entry(candidate.identity, now)
        crashes = 0
        if entry is not None:
            if entry.state == "done" or candidate.fence < entry.fence:
                return Duplicate()
            if entry.state == "leased" and entry.until > now:
                return Leased(entry.until - now)
            crashes = entry.crashes + (entry.state == "leased")
        refusal = self._allowances.take(candidate.limits, candidate.cost, now)
        if refusal is not None:
            return refusal
        self._lease_to(candidate.identity, token, candidate.fence, crashes, now)
        self._allowances.hold(token, candidate.limits, self._lease_ends(now))
        return Run(token, crashes)

    def _settled(self, mark: Mark, now: datetime) -> bool:
        entry = self._entry(mark.identity, now)
        if entry is None:
            if not isinstance(mark.end, Released):
                fresh = Entry("leased", mark.token, "", 0, now, now + self._marker)
                self._ledger[mark.identity] = self._ended(fresh, mark.end, now)
            return True
        if entry.token != mark.token:
            return False
        if entry.state == "leased":
            self._ledger[mark.identity] = self._ended(entry, mark.end, now)
            return True
        # The same call repeated: its mark is there already.
        match mark.end:
            case Done():
                return entry.state == "done"
            case Waiting(fence):
                return entry.state == "waiting" and fence <= entry.fence
            case Released():
                return entry.state == "waiting"

    def _ended(self, entry: Entry, end: Done | Waiting | Released, now: datetime) -> Entry:
        forgotten_at = now + self._marker
        match end:
            case Done():
                return replace(entry, state="done", forgotten_at=forgotten_at)
            case Waiting(fence):
                later = max(fence, entry.fence)
                return replace(entry, state="waiting", fence=later, crashes=0, forgotten_at=forgotten_at)
            case Released():
                return replace(entry, state="waiting", forgotten_at=forgotten_at)

    def _renewed(self, lease: Lease, now: datetime) -> bool:
        entry = self._entry(lease.identity, now)
        if entry is None:
            self._lease_to(lease.identity, lease.token, "", 0, now)
            return True
        if entry.state != "leased" or entry.token != lease.token:
            return False
        self._lease_to(lease.identity, lease.token, entry.fence, entry.crashes, now)
        return True

    def _lease_to(self, identity: str, token: str, fence: str, crashes: int, now: datetime) -> None:
        until, forgotten_at = self._lease_ends(now), now + self._marker
        self._ledger[identity] = Entry("leased", token, fence, crashes, until, forgotten_at)

    def _lease_ends(self, now: datetime) -> datetime:
        # As in Redis, a lease starts and ends at whole milliseconds.
        return EPOCH + ((now - EPOCH) // MILLISECOND + self._lease // MILLISECOND) * MILLISECOND

    def _entry(self, identity: str, now: datetime) -> Entry | None:
        entry = self._ledger.get(identity)
        if entry is not None and entry.forgotten_at <= now:
            del self._ledger[identity]
            return None
        return entry
