"""The arithmetic of limits in the memory of one process."""

from collections import defaultdict
from datetime import datetime, timedelta

from ratelimit.admission import EPOCH, MICROSECOND, Concurrency, Gate, Limit, Limited, Limits


class Allowances:
    """What is left of each limit, by its name; instants are arguments."""

    def __init__(self) -> None:
        self._full_at_us: dict[str, int] = {}
        self._places: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
        """Concurrency limit to the jobs that hold a place, and until when."""
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
            held = self._places[limit.name]
            for job in [job for job, until in held.items() if until <= now]:
                del held[job]
            over = len(held) - limit.most
            short_us = (sorted(held.values())[over] - now) // MICROSECOND if over >= 0 else 0
            if short_us > wait_us:
                wait_us, by = short_us, limit.name
        return wait_us, by

    def hold(self, identity: str, limits: Limits, until: datetime) -> None:
        """Let a job hold its places until an instant."""
        for limit in limits:
            if isinstance(limit, Concurrency):
                self._places[limit.name][identity] = until

    def give_back(self, identity: str, limits: Limits) -> None:
        """Free the places of a job."""
        for limit in limits:
            if isinstance(limit, Concurrency):
                self._places[limit.name].pop(identity, None)

    def free_all_places(self) -> None:
        """Let nobody hold a place."""
        self._places.clear()

    def shut(self, gate: str, until: datetime) -> None:
        """Shut a gate until an instant, or for longer if it is shut for longer already."""
        self._shut[gate] = max(until, self._shut.get(gate, until))

    def open(self, gate: str) -> None:
        """Open a gate."""
        self._shut.pop(gate, None)
