"""What is in a window, for those who ask: it is gone through as a whole, so jobs are never made to pay for it.

A friend of `streams.window`: it reads what that keeps, and changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from streams.delivery import Delivery
from streams.lanes import AGE, Lane, Line
from streams.window import Window


class Hold(NamedTuple):
    """What holds something back: the name of a limit, or one of the words in `streams.lanes`."""

    of: str
    """`queue`, `organization` or `job`."""
    by: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that waits in a window, and why it is not running."""

    delivery: Delivery
    holds: tuple[Hold, ...]
    lane: int
    """How many of its organization are in the window."""
    organizations: int
    """How many organizations have something in the window."""
    position: int | None = None
    """How many of its lane are taken before it; None while it is not in its lane, for it is held by itself."""
    behind: int | None = None
    """How many of its ordering key go before it; None when there is none."""
    due: datetime | None = None
    """When an earlier one of its ordering key is due that waits elsewhere, as far as is known."""
    starts_at: datetime | None = None
    """About when it starts; None when that depends on an earlier one of its ordering key."""


class InWindow(NamedTuple):
    """One delivery in a window, and the item of its lane that it is, or is a part of."""

    delivery: Delivery
    item: Delivery | Line | None
    """None when it is held by itself."""
    hold: Hold | None
    """Of itself; the holds of its lane and of its queue are not repeated here."""


def contents(window: Window, now: datetime) -> Iterator[InWindow]:
    """Yield everything in a window."""
    for until, _, delivery, by in window._held:
        yield InWindow(delivery, None, Hold("job", by, until) if until > now else None)
    for line in window._lines.values():
        for _, _, delivery in line.waiting:
            yield InWindow(delivery, line, None)
    for lane in window._lanes.values():
        for level in lane.levels.values():
            for item in level:
                if not isinstance(item, Line):
                    yield InWindow(item, item, None)


def find(window: Window, organization_id: str, job_id: str, now: datetime) -> Waiting | None:
    """Return the delivery of a job that waits in a window."""
    for one in contents(window, now):
        delivery = one.delivery
        if delivery.job_id == job_id and delivery.organization_id == organization_id:
            return _waiting(window, one, now)
    return None


def queue_hold(window: Window, now: datetime) -> Hold | None:
    """Return what holds a whole window."""
    until = window._held_until
    return Hold("queue", window._held_by, until) if until is not None and until > now else None


def skipped(window: Window, organization_id: str) -> int:
    """Return how many of an organization are skipped, to be read back."""
    lane = window._lanes.get(organization_id if window._fair else "")
    return len(lane.skipped) if lane is not None and lane.skipped else 0


def lanes_skipped(window: Window) -> list[tuple[str, int]]:
    """Return the organizations of which something is skipped, and how much."""
    return [(lane.organization, len(lane.skipped)) for lane in window.surplus.lanes.values() if lane.skipped]


def weight(window: Window, organization_id: str) -> float:
    """Return the weight of an organization."""
    return window._weights(organization_id)


def lane_holds(window: Window, organization_id: str, now: datetime) -> list[Hold]:
    """Return what holds an organization's lane, and what holds the whole window."""
    lane = window._lanes.get(organization_id if window._fair else "")
    holds = [queue_hold(window, now)]
    if lane is not None and lane.until is not None and lane.until > now:
        holds.append(Hold("organization", lane.held_by, lane.until))
    return [one for one in holds if one is not None]


def _waiting(window: Window, one: InWindow, now: datetime) -> Waiting:
    delivery, item, hold = one
    lane = window._lanes[delivery.organization_id if window._fair else ""]
    holds = [*lane_holds(window, delivery.organization_id, now), *filter(None, [hold])]
    behind, due = _behind(item, delivery, now) if isinstance(item, Line) else (None, None)
    position = None
    if item is not None and not behind and due is None:
        position = _position(lane, item, delivery)
    starts_at = None if behind or due else _starts_at(window, lane, position or 0, holds, now)
    in_window = sum(bool(each.records) for each in window._lanes.values())
    return Waiting(delivery, tuple(holds), lane.records, in_window, position, behind, due, starts_at)


def _behind(line: Line, delivery: Delivery, now: datetime) -> tuple[int | None, datetime | None]:
    earlier = sum(one.rank < delivery.rank for _, _, one in line.waiting)
    ahead = earlier + len(line.busy)
    due = line.until if line.until is not None and line.until > now else None
    return ahead or None, due


def _position(lane: Lane, item: Delivery | Line, delivery: Delivery) -> int:
    """Return how many items of a lane are taken before one, by priority and age."""
    urgency = delivery.created_at + delivery.priority * AGE
    ahead = 0
    for priority, level in lane.levels.items():
        for one in level:
            later = priority != delivery.priority and one.created_at + priority * AGE > urgency
            if one is item or later:
                break
            ahead += 1
    return ahead


def _starts_at(window: Window, lane: Lane, position: int, holds: list[Hold], now: datetime) -> datetime:
    """Return about when a job starts that has so many before it in its lane: their turns, after all holds."""
    seconds_each = window.seconds_each(lane)
    free_at = max([one.until for one in holds], default=now)
    return max(free_at, now) + timedelta(seconds=position * seconds_each)
