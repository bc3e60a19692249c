"""The records of one queue that were read and wait for a slot: which one is next?

Pure and synchronous: the instant is an argument, nothing here waits.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import count

from streams.delivery import Delivery


class Window:
    """Lanes per organization, taken in turn.

    An organization with a thousand records waits in its own lane; one with a single record is at most one
    round away from its turn. A lane, a single delivery or the whole window may be held until an instant.
    Bounded in records and bytes by `full`, which its reader asks before it reads on.
    """

    def __init__(self, *, records: int, size_bytes: int) -> None:
        self._records_bound = records
        self._bytes_bound = size_bytes
        self._lanes: dict[str, deque[Delivery]] = {}
        self._turns: deque[str] = deque()
        """Organizations with an open, non-empty lane, the next one first."""
        self._held_lanes: dict[str, datetime] = {}
        self._held: list[tuple[datetime, int, Delivery]] = []
        self._held_until: datetime | None = None
        self._sequence = count()
        self.records = 0
        self.bytes = 0

    @property
    def full(self) -> bool:
        return self.records >= self._records_bound or self.bytes >= self._bytes_bound

    def add(self, delivery: Delivery) -> None:
        """Put a delivery at the end of its organization's lane."""
        self._count(delivery, 1)
        self._lane(delivery.organization_id).append(delivery)

    def next(self, limit: int, now: datetime) -> list[Delivery]:
        """Take up to `limit` deliveries out of the window, one per organization in turn."""
        self._release(now)
        taken: list[Delivery] = []
        if self._held_until is not None:
            return taken
        turns, lanes = self._turns, self._lanes
        while turns and len(taken) < limit:
            organization = turns.popleft()
            lane = lanes[organization]
            taken.append(lane.popleft())
            if lane:
                turns.append(organization)
            else:
                del lanes[organization]
        for delivery in taken:
            self._count(delivery, -1)
        return taken

    def put_back(self, deliveries: Iterable[Delivery]) -> None:
        """Return deliveries that were taken and may not run yet to the heads of their lanes, in their order.

        Their organizations get their turns back: were they to queue up again behind those whose deliveries did
        run, a limit that lets one through at a time would let the same organization through each time.
        """
        returned = list(deliveries)
        for delivery in reversed(returned):
            self._count(delivery, 1)
            self._lane(delivery.organization_id).appendleft(delivery)
        ahead = dict.fromkeys(
            one.organization_id for one in returned if one.organization_id not in self._held_lanes
        )
        self._turns = deque([*ahead, *(name for name in self._turns if name not in ahead)])

    def hold(self, delivery: Delivery, until: datetime) -> None:
        """Keep a delivery that was taken, and only it, until an instant."""
        self._count(delivery, 1)
        heapq.heappush(self._held, (until, next(self._sequence), delivery))

    def hold_lane(self, organization: str, until: datetime) -> None:
        """Take nothing of an organization until an instant."""
        if organization in self._lanes and organization not in self._held_lanes:
            self._turns.remove(organization)
        self._held_lanes[organization] = max(until, self._held_lanes.get(organization, until))

    def hold_all(self, until: datetime) -> None:
        """Take nothing until an instant."""
        self._held_until = max(until, self._held_until or until)

    def reopen(self) -> None:
        """Hold neither the whole nor a lane any longer; single deliveries stay held."""
        self._held_until = None
        for organization in self._held_lanes:
            if organization in self._lanes:
                self._turns.append(organization)
        self._held_lanes.clear()

    def wakes_at(self) -> datetime | None:
        """Return when something held is released next, or None when nothing is held."""
        instants = [*self._held_lanes.values()]
        if self._held:
            instants.append(self._held[0][0])
        if self._held_until is not None:
            instants.append(self._held_until)
        return min(instants, default=None)

    def has_next(self, now: datetime) -> bool:
        """Return whether `next` would take anything."""
        if self._held_until is not None and self._held_until > now:
            return False
        shut = {name for name, until in self._held_lanes.items() if until > now}
        due = (one.organization_id for until, _, one in self._held if until <= now)
        return not shut.issuperset(self._lanes) or not shut.issuperset(due)

    def drop(self, gone: Iterable[object]) -> list[Delivery]:
        """Take out and return every delivery whose PartitionOffsets is among those given."""
        parted = set(map(id, gone))
        return self.take_out(lambda one: id(one.offsets) in parted)

    def take_out(self, meant: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out and return every delivery that is meant."""
        kept: list[Delivery] = []
        dropped: list[Delivery] = []
        for lane in self._lanes.values():
            for delivery in lane:
                (dropped if meant(delivery) else kept).append(delivery)
        held: list[tuple[datetime, Delivery]] = []
        for until, _, one in self._held:
            if meant(one):
                dropped.append(one)
            else:
                held.append((until, one))
        if not dropped:
            return dropped
        self._lanes.clear()
        self._turns.clear()
        self._held.clear()
        self.records = self.bytes = 0
        for delivery in kept:
            self.add(delivery)
        for until, delivery in held:
            self.hold(delivery, until)
        return dropped

    def _lane(self, organization: str) -> deque[Delivery]:
        lane = self._lanes.get(organization)
        if lane is None:
            lane = self._lanes[organization] = deque()
            if organization not in self._held_lanes:
                self._turns.append(organization)
        return lane

    def _release(self, now: datetime) -> None:
        if self._held_until is not None and self._held_until <= now:
            self._held_until = None
        for organization in [name for name, until in self._held_lanes.items() if until <= now]:
            del self._held_lanes[organization]
            if organization in self._lanes:
                self._turns.append(organization)
        while self._held and self._held[0][0] <= now:
            delivery = heapq.heappop(self._held)[2]
            self._lane(delivery.organization_id).appendleft(delivery)

    def _count(self, delivery: Delivery, step: int) -> None:
        self.records += step
        self.bytes += step * delivery.size
