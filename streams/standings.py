"""How organizations stand on one worker: what runs and waits of each, and what it used of the slots lately."""

import heapq
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from streams import window_view
from streams.usage import lately

if TYPE_CHECKING:
    from streams.pipeline import Pipeline
    from streams.worker import Worker

OTHERS = "_other"
"""The row of all organizations that are not among the first: no table and no metric grows with their number.

No organization has that id."""


@dataclass(slots=True)
class Standing:
    """What runs and waits of an organization, and what it used."""

    running: int = 0
    """Jobs that hold a lease."""
    queued: int = 0
    """Jobs in a window that no limit holds now."""
    limited: int = 0
    """Jobs in a window that a limit holds now."""
    skipped: int = 0
    """Jobs that are skipped, and will be read back."""
    seconds: float = 0.0
    """Of slots, lately: a sum that fades, of about a minute."""
    weight: float = 0.0
    organizations: int = 1

    def add(self, other: "Standing") -> None:
        """Add what is counted elsewhere."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def use(self) -> tuple[float, int]:
        """Return what comes first among organizations: what used most, then what has most."""
        return self.seconds, self.running + self.queued + self.limited + self.skipped


def standings(worker: "Worker", queue_name: str | None = None) -> dict[str, Standing]:
    """Return how each organization stands that a worker knows of, in one of its queues or in all of them."""
    found: defaultdict[str, Standing] = defaultdict(Standing)
    for pipeline in worker.pipelines.values():
        if queue_name in (None, pipeline.queue.name):
            _count(worker, pipeline, found)
    return found


def _count(worker: "Worker", pipeline: "Pipeline", found: defaultdict[str, Standing]) -> None:
    now, window = worker.clock(), pipeline.window
    for organization, seconds in pipeline.runs.usage.all().items():
        found[organization].seconds += seconds
    for running in pipeline.runs.all():
        one = found[running.delivery.organization_id]
        one.running += 1
        if running.started_at is not None:
            one.seconds += lately(max((now - running.started_at).total_seconds(), 0.0))
    held: dict[str, bool] = {}
    for delivery, _, hold in window_view.contents(window, now):
        name = delivery.organization_id
        if name not in held:
            held[name] = any(map(is_limit, window_view.lane_holds(window, name, now)))
        if held[name] or (hold is not None and is_limit(hold)):
            found[name].limited += 1
        else:
            found[name].queued += 1
    for organization, skipped in window_view.lanes_skipped(window):
        found[organization].skipped += skipped
    for name, one in found.items():
        one.weight = window_view.weight(window, name)


def is_limit(hold: window_view.Hold) -> bool:
    """Return whether what holds is a limit, by its name."""
    return ":" in hold.by


def first(found: dict[str, Standing], most: int) -> dict[str, Standing]:
    """Return those that come first, and the sum of all the rest as OTHERS where there is a rest."""
    names = heapq.nlargest(most, found, key=lambda name: found[name].use)
    top = {name: found[name] for name in names}
    rest = Standing(organizations=0)
    for name in found.keys() - top.keys():
        rest.add(found[name])
    return {**top, OTHERS: rest} if rest.organizations else top
