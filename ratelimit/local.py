"""Limits within one worker, while the ledger cannot answer."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeAlias

from ratelimit.admission import Candidate, Concurrency, Gate, Limit, Limited, Limits
from ratelimit.allowances import Allowances

Refuses: TypeAlias = Callable[[Candidate], Limited | None]
"""Takes what a candidate needs and returns None, or takes nothing and says when it would fit."""


class LocalLimits:
    """Holds every limit at this worker's share of it.

    Shares are whole: a limit that is smaller than the number of workers lets one through on each, so that the sum
    exceeds it. Bursts are shared, too. Gates are open.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._allowances = Allowances()

    def beside(self, running: Iterable[tuple[str, Limits]], workers: Callable[[str], int]) -> Refuses:
        """Return what refuses candidates beside the jobs that run here, given as (identity, limits).

        `workers` returns among how many workers the limit of a name is shared.
        """
        now = self._clock()
        forever = datetime.max.replace(tzinfo=now.tzinfo)
        self._allowances.free_all_places()
        for identity, limits in running:
            self._allowances.hold(identity, shares(limits, workers), forever)

        def refuses(candidate: Candidate) -> Limited | None:
            limits = shares(candidate.limits, workers)
            most = min(
                [limit.capacity for limit in limits if isinstance(limit, Limit)], default=candidate.cost
            )
            refusal = self._allowances.take(limits, min(candidate.cost, most), now)
            if refusal is None:
                self._allowances.hold(candidate.identity, limits, forever)
            return refusal

        return refuses


def shares(limits: Limits, workers: Callable[[str], int]) -> Limits:
    """Return one worker's share of each limit."""
    return tuple(_share(limit, workers(limit.name)) for limit in limits)


def _share(limit: Limit | Concurrency | Gate, workers: int) -> Limit | Concurrency | Gate:
    match limit:
        case Limit(name, count, per):
            return Limit(name, count, per * workers, max(limit.capacity // workers, 1))
        case Concurrency(name, most):
            return Concurrency(name, max(most // workers, 1))
        case Gate():
            return limit
