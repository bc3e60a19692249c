"""What a window is made of: a lane for each organization, and a line for each ordering key within it.

Pure and synchronous, as the window is.
"""

import heapq
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count

from streams.delivery import Delivery
from streams.surplus import Skipped

AGE = timedelta(seconds=30)
"""One step of priority is worth so much waiting: nothing that was published later than nine of them overtakes."""

ZERO = timedelta(0)
NOT_DUE, LEASED_ELSEWHERE, NO_LEDGER = "not due", "leased elsewhere", "no ledger"
"""What holds a delivery in the window when no limit does; the names of limits have a colon."""

_AGE_SECONDS = AGE.total_seconds()
_sequence = count()


class Line:
    """The deliveries of one organization with one ordering key: one at a time, in the order of publication."""

    __slots__ = ("busy", "name", "queued", "until", "waiting")

    def __init__(self, name: tuple[str, str]) -> None:
        self.name = name
        self.waiting: list[tuple[int, int, Delivery]] = []
        """By their places in the order of publication, the first on top."""
        self.busy: set[Delivery] = set()
        """What was taken out, or is held, and has not ended: while there is one, no other is taken."""
        self.queued = False
        """It is among the deliveries of its lane, in whose stead its first one is taken."""
        self.until: datetime | None = None
        """Nothing is taken until then, for an earlier one of the key waits elsewhere."""

    @property
    def free(self) -> bool:
        """Return whether its first delivery may be taken in its turn and nothing says so yet."""
        return not (self.busy or self.queued or self.until) and bool(self.waiting)

    @property
    def blocked(self) -> bool:
        """Return whether it stands still for long: an earlier one waits elsewhere, or runs on and on."""
        return self.until is not None or any(one.watched for one in self.busy)

    @property
    def first(self) -> Delivery:
        return self.waiting[0][2]

    @property
    def created_at(self) -> datetime:
        return self.first.created_at

    def put(self, delivery: Delivery) -> bool:
        """Add a delivery in its place; returns whether it is the first now."""
        heapq.heappush(self.waiting, (delivery.rank, next(_sequence), delivery))
        return self.first is delivery

    def pop(self) -> Delivery:
        """Take the first one; the line is busy until that has ended."""
        delivery = heapq.heappop(self.waiting)[2]
        self.busy.add(delivery)
        self.queued = False
        return delivery

    def remove(self, meant: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out and return every waiting delivery that is meant."""
        removed = [one for _, _, one in self.waiting if meant(one)]
        if removed:
            self.waiting = [entry for entry in self.waiting if not meant(entry[2])]
            heapq.heapify(self.waiting)
        return removed


class Lines(dict[tuple[str, str], Line]):
    """The lines that have something, by organization and ordering key."""

    def of(self, delivery: Delivery) -> Line:
        """Return the line of a delivery, which has an ordering key."""
        name = delivery.organization_id, delivery.ordering_key or ""
        line = self.get(name)
        if line is None:
            line = self[name] = Line(name)
        return line

    def close(self, line: Line) -> None:
        """Let go of a line if it is empty."""
        if not line.busy and not line.waiting and self.get(line.name) is line:
            del self[line.name]
            line.until = None

    def wait_for(self, delivery: Delivery) -> bool:
        """Return whether others wait here for a delivery: sent away, it may never find room among them."""
        if delivery.ordering_key is None:
            return False
        line = self.get((delivery.organization_id, delivery.ordering_key))
        return line is not None and bool(line.waiting) and delivery.rank < line.first.rank


class Lane:
    """The deliveries of one organization, by priority, and what the organization has used."""

    __slots__ = (
        "bytes",
        "held_by",
        "idle",
        "levels",
        "organization",
        "out",
        "pause",
        "records",
        "skipped",
        "turn",
        "until",
        "used",
        "weight",
    )

    def __init__(self, organization: str, weight: float, used: int) -> None:
        self.organization = organization
        self.weight = weight
        self.used = used
        """Nanoseconds of slots that it has used, divided by its weight, on the scale of the window's virtual time."""
        self.levels: dict[int, deque[Delivery | Line]] = {}
        """What may be taken, by priority."""
        self.records = 0
        """What is in the window of it, held or not."""
        self.bytes = 0
        self.out = 0
        """How many were taken out and have not ended."""
        self.turn: tuple[int, int, Lane] | None = None
        """Its entry among the lanes that are served, the only one that counts."""
        self.until: datetime | None = None
        """Nothing is taken until then."""
        self.held_by = ""
        """What it was held by last, such as the name of a limit."""
        self.pause = 0.0
        """For how many seconds it was held last: about how often a limit lets one of it through."""
        self.skipped: Skipped | None = None
        """What was read of it, let go of, and is to be read back; None when nothing is."""
        self.idle = False
        """It is among the lanes that are forgotten once what they used does not matter any more."""

    def put(self, item: Delivery | Line, priority: int, *, first: bool = False) -> None:
        """Add a delivery, or a line in its stead, at the end or at the head of its priority."""
        level = self.levels.get(priority)
        if level is None:
            level = self.levels[priority] = deque()
        if first:
            level.appendleft(item)
        else:
            level.append(item)

    def pop(self) -> Delivery | Line:
        """Take the most urgent one, where an older one counts as more urgent."""
        levels = self.levels
        (priority, *others) = levels
        if others:
            priority = min(levels, key=self._urgency)
        level = levels[priority]
        item = level.popleft()
        if not level:
            del levels[priority]
        return item

    def _urgency(self, priority: int) -> tuple[float, int]:
        return self.levels[priority][0].created_at.timestamp() + priority * _AGE_SECONDS, priority

    def remove(self, meant: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out and return what is meant; a line that lost something is out, too, until it is offered again."""
        removed: list[Delivery] = []
        for level in self.levels.values():
            for item in level:
                if not isinstance(item, Line):
                    removed += [item] if meant(item) else []
                elif lost := item.remove(meant):
                    removed += lost
                    item.queued = False
        if removed:
            left = {
                priority: deque(
                    one for one in level if (one.queued if isinstance(one, Line) else not meant(one))
                )
                for priority, level in self.levels.items()
            }
            self.levels = {priority: level for priority, level in left.items() if level}
        return removed
