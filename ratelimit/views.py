"""What operators are shown of the ledger and of limits. It is read and never changed, a thing at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Protocol

from ratelimit.admission import EPOCH, MICROSECOND, Concurrency, Gate, Limit, Limits


@dataclass(frozen=True, slots=True)
class Known:
    """What the ledger knows of a job: it is done, waits for a later delivery, or was leased until an instant."""

    state: Literal["done", "leased", "waiting"]
    fence: str = ""
    """The least that a delivery needs to run; '' when the job is done."""
    crashes: int = 0
    until: datetime | None = None
    """When its lease runs out, or ran out, unless it is renewed."""

    @classmethod
    def of_text(cls, text: str) -> "Known":
        """Return what a job key holds, as `ledger.lua` has it."""
        kind, words = text[0], text[1:].split(" ", 3)
        match kind:
            case "l":
                return cls("leased", words[3], int(words[2]), EPOCH + timedelta(milliseconds=int(words[1])))
            case "w":
                return cls("waiting", words[2], int(words[1]))
            case _:
                return cls("done")


@dataclass(frozen=True, slots=True)
class Left:
    """How much of a limit fits now: units of a rate, places of a concurrency; 1 for an open gate."""

    limit: Limit | Concurrency | Gate
    left: int
    until: datetime | None = None
    """When the next one fits at the latest; None when one fits now."""


class Views(Protocol):
    """What both kinds of admission show; raises AdmissionUnavailable like everything else they do."""

    async def known(self, identity: str) -> Known | None:
        """Return what the ledger knows of a job, by its identity; None when that is nothing."""
        ...

    async def left(self, limits: Limits) -> list[Left]:
        """Return what is left of each limit, in their order."""
        ...

    async def living(self) -> list[str]:
        """Return the workers that said they live and whose word still holds."""
        ...

    async def now(self) -> datetime:
        """Return what time it is for the ledger."""
        ...


def rate_left(limit: Limit, kept_us: int, now: datetime) -> Left:
    """Return what is left of a rate, from the instant at which its allowance is whole again, in microseconds."""
    now_us, whole_us = (now - EPOCH) // MICROSECOND, limit.capacity * limit.interval_us
    full_us = min(max(kept_us, now_us), now_us + whole_us)
    left = (now_us + whole_us - full_us) // limit.interval_us
    next_us = full_us + limit.interval_us - whole_us
    return Left(limit, left, None if left else EPOCH + next_us * MICROSECOND)


def places_left(limit: Concurrency, held: Iterable[tuple[int, datetime]], now: datetime) -> Left:
    """Return what is left of a concurrency, from how many places are held until when."""
    live = [(until, count) for count, until in held if until > now]
    left = max(limit.most - sum(count for _, count in live), 0)
    return Left(limit, left, None if left else min(live)[0])


def gate_left(gate: Gate, shut_until: datetime, now: datetime) -> Left:
    """Return whether a gate is open."""
    return Left(gate, 0, shut_until) if shut_until > now else Left(gate, 1)
