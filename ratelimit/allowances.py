"""The arithmetic of limits in the memory of one process."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate

from ratelimit.admission import EPOCH, MICROSECOND, Concurrency, Gate, Limit, Limited, Limits
from ratelimit.views import Left, gate_left, places_left, rate_left


@dataclass(slots=True)
class Places:
    """How many jobs of one token hold a place, and until when."""

    count: int = 0
    until: datetime = EPOCH


class Allowances:
    """What is left of each limit, by its name; instants are arguments."""

    def __init__(self) -> None:
        self._full_at_us: dict[str, int] = {}
        self._places: defaultdict[str, dict[str, Places]] = defaultdict(dict)
        """Concurrency limit to what is held of it, by token."""
        self._shut: dict[str, datetime] = {}

    def take(self, limits: Limits, cost: int, now: datetime) -> Limited | None:
        """Take the cost from all limits and return None, or take nothing and say when it would fit."""
        now_us = (now - EPOCH) // MICROSECOND
        wait_us, by, after = 0, "", {}
        for limit in limits:
            short_us = 0
            if isinstance(limit, Limit):
                whole_us = limit.interval_us * limit.capacity
                kept_us = self._full_at_us.get(limit.name, 0)
                full_at_us = min(max(kept_us, now_us), now_us + whole_us)
                if full_at_us < kept_us:
                    self._full_at_us[limit.name] = full_at_us
                after[limit.name] = full_at_us + limit.interval_us * cost
                short_us = after[limit.name] - now_us - whole_us
            elif isinstance(limit, Gate):
                short_us = (self._shut.get(limit.name, now) - now) // MICROSECOND
            if short_us > wait_us:
                wait_us, by = short_us, limit.name
        if wait_us == 0:
            wait_us, by = self._wait_for_a_place(limits, now)
        if wait_us > 0:
            return Limited(timedelta(microseconds=wait_us), by)
        self._full_at_us |= after
        return None

    def _wait_for_a_place(self, limits: Limits, now: datetime) -> tuple[int, str]:
        """Return the microseconds until so many leases have run out that a place is free, and in which limit."""
        wait_us, by = 0, ""
        for limit in limits:
            if not isinstance(limit, Concurrency):
                continue
            live = sorted(
                (one for one in self._places[limit.name].values() if one.until > now),
                key=lambda one: one.until,
            )
            over = sum(one.count for one in live) - limit.most
            frees = accumulate(one.count for one in live)
            ends = (one.until for one, freed in zip(live, frees, strict=True) if freed > over)
            short_us = (next(ends) - now) // MICROSECOND if over >= 0 else 0
            if short_us > wait_us:
                wait_us, by = short_us, limit.name
        return wait_us, by

    def hold(self, token: str, limits: Limits, until: datetime) -> None:
        """Let one more job of a token hold its places, all of the token's until an instant."""
        for limit in limits:
            if isinstance(limit, Concurrency):
                held = self._places[limit.name].setdefault(token, Places())
                held.count, held.until = held.count + 1, until

    def give_back(self, token: str, limits: Limits) -> None:
        """Free the places of one job of a token."""
        for limit in limits:
            if isinstance(limit, Concurrency) and (held := self._places[limit.name].get(token)) is not None:
                held.count -= 1
                if held.count == 0:
                    del self._places[limit.name][token]

    def keep(self, renewed: Iterable[tuple[str, Limits]], now: datetime, until: datetime) -> None:
        """Let the jobs of tokens keep their places until an instant, those again whose leases had run out."""
        kept = Counter(
            (limit.name, token)
            for token, limits in renewed
            for limit in limits
            if isinstance(limit, Concurrency)
        )
        for (name, token), count in kept.items():
            held = self._places[name].get(token)
            live = held is not None and held.until > now
            self._places[name][token] = Places(held.count if held is not None and live else count, until)

    def left(self, limit: Limit | Concurrency | Gate, now: datetime) -> Left:
        """Return what is left of a limit."""
        match limit:
            case Limit():
                return rate_left(limit, self._full_at_us.get(limit.name, 0), now)
            case Concurrency():
                held = [(one.count, one.until) for one in self._places[limit.name].values()]
                return places_left(limit, held, now)
            case Gate():
                return gate_left(limit, self._shut.get(limit.name, EPOCH), now)

    def free_all_places(self) -> None:
        """Let nobody hold a place."""
        self._places.clear()

    def shut(self, gate: str, until: datetime) -> None:
        """Shut a gate until an instant, or for longer if it is shut for longer already."""
        self._shut[gate] = max(until, self._shut.get(gate, until))

    def open(self, gate: str) -> None:
        """Open a gate."""
        self._shut.pop(gate, None)
