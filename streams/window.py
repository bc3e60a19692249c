"""The records of one queue that were read and wait for a slot: which one is next?

Pure and synchronous: the instant is an argument, nothing here waits. docs/explanation/delivery.md has the bounds.
"""

import heapq
from collections import deque
from collections.abc import Callable, Container, Iterable
from datetime import datetime, timedelta
from itertools import count

from streams.delivery import Delivery
from streams.lanes import ZERO, Lane, Line, Lines
from streams.offsets import PartitionOffsets
from streams.surplus import Surplus
from streams.turns import OVERHEAD_SECONDS, Pace, Turns

SHORTEST_ASIDE = timedelta(seconds=1)
LONGEST_ASIDE = timedelta(minutes=10)

_sequence = count(1)


class Window:
    """Lanes per organization that share the slots by their weights, in measured seconds.

    Each lane has used so many seconds, divided by its weight, and the one that has used least is next. What a
    job will take is charged when it is taken out, by the average of its type, and corrected by `ended`. A lane
    that was empty or held starts at the virtual time: idleness earns nothing. Of one ordering key, one delivery
    at a time is taken, in the order of publication. `records` and `size_bytes` bound what it holds, for its reader
    to heed. An organization that has as much in it as is free has its share: what comes then is skipped, which
    keeps its offset and nothing else, and is read back when the lane runs `low`.
    Work per job grows with the logarithm of the lanes.
    """

    def __init__(
        self,
        *,
        records: int,
        size_bytes: int,
        slots: int = 1,
        weights: Callable[[str], float] = lambda organization: 1.0,
        fair: bool = True,
    ) -> None:
        self.records_bound = records
        self.bytes_bound = size_bytes
        self._slots = slots
        self._weights = weights
        self._fair = fair
        self._lanes: dict[str, Lane] = {}
        self.turns = Turns()
        self._lines = Lines()
        self._waking: list[tuple[datetime, int, Lane | Line]] = []
        self._held: list[tuple[datetime, int, Delivery, str]] = []
        self._held_until: datetime | None = None
        self._pause, self._held_by = 0.0, ""
        self.surplus = Surplus(self)
        self._pace = Pace()
        self.records = 0
        self.bytes = 0

    @property
    def full(self) -> bool:
        return self.records >= self.records_bound or self.bytes >= self.bytes_bound

    @property
    def is_held(self) -> bool:
        return self._held_until is not None

    @property
    def seconds_per_job(self) -> float:
        """Return how often a job of the queue ends while all slots have work, on average."""
        return self._pace.average / self._slots

    def weigh(self) -> None:
        """Look up the weights of the lanes that are served, which may have changed; called now and then."""
        self.turns.weigh(self._weights)

    def seconds_each(self, lane: Lane) -> float:
        """Return how often a lane is served, as far as can be told: by the slots, or by what limits them."""
        serving = self.turns.weights + (0.0 if lane.turn is not None else lane.weight)
        shares = max(1.0, serving / lane.weight)
        return max(max(self.seconds_per_job, self._pause) * shares, lane.pause)

    def offer(self, delivery: Delivery) -> bool:
        """Add a delivery and return True; or skip it and return False, for its organization has its share."""
        lane, surplus = self._lanes.get(delivery.organization_id), self.surplus
        if (
            lane is None
            or not (lane.skipped or surplus.crowds(lane))
            or surplus.takes(lane, delivery)
            or self._lines.wait_for(delivery)
        ):
            self.add(delivery)
            return True
        surplus.skip(lane, delivery.offsets, delivery.offset, delivery.priority)
        return False

    def add(self, delivery: Delivery) -> None:
        """Put a delivery at the end of its organization's lane, or in its place in the line of its ordering key."""
        lane = self._lanes.get(delivery.organization_id) or self._lane(delivery)
        self._count(lane, delivery, 1)
        if delivery.ordering_key is None:
            level = lane.levels.get(delivery.priority)
            if level is None:
                level = lane.levels[delivery.priority] = deque()
            level.append(delivery)
        else:
            line = self._lines.of(delivery)
            if line.put(delivery):
                line.until = None
            self._offer(lane, line)
        if lane.turn is None:
            self._enter(lane)

    def depart(self, delivery: Delivery) -> None:
        """Note that a delivery goes elsewhere that is not in the window: its line waits until it is `released`."""
        if delivery.ordering_key is not None:
            self._lines.of(delivery).busy.add(delivery)

    def next(self, limit: int, now: datetime, *, leading: bool = False) -> list[Delivery]:
        """Take up to `limit` deliveries out of the window, each time of the lane that has used least.

        With `leading` only while that is of an organization of which nothing is out.
        """
        self._release(now)
        taken: list[Delivery] = []
        turns, estimates = self.turns, self._pace.by_type
        while len(taken) < limit and self._held_until is None and (lane := turns.top()) is not None:
            if leading and lane.out:
                break
            item = lane.pop()
            delivery = item.pop() if isinstance(item, Line) else item
            delivery.leads = not lane.out
            seconds = estimates.get(delivery.handler.job_type, OVERHEAD_SECONDS)
            delivery.charged = int(seconds / lane.weight * 1e9)
            lane.records -= 1
            lane.bytes -= len(delivery.value)
            turns.charge(lane, delivery.charged)
            taken.append(delivery)
        self.records -= len(taken)
        self.bytes -= sum([len(one.value) for one in taken])
        for lane in turns.forgotten(self.records_bound):
            del self._lanes[lane.organization]
        return taken

    def ended(self, delivery: Delivery, seconds: float) -> None:
        """Charge what a delivery that was taken out has used of a slot, in place of the estimate."""
        if delivery.charged >= 0:
            used = seconds + OVERHEAD_SECONDS
            self._pace.learn(delivery.handler.job_type, used)
            self._charge(delivery, used)

    def refund(self, delivery: Delivery) -> None:
        """Charge nothing for a delivery that was taken out and did not run."""
        self._charge(delivery, 0.0)

    def let_go(self, delivery: Delivery) -> None:
        """Forget a delivery that was taken out and will not run here."""
        self.refund(delivery)
        self.released(delivery)

    def released(self, delivery: Delivery) -> None:
        """Let the next one of its ordering key be taken, now that the end of a delivery is durable."""
        if delivery.ordering_key is None:
            return
        line = self._lines.of(delivery)
        line.busy.discard(delivery)
        self._offer(self._lane(delivery), line)

    def put_back(self, deliveries: Iterable[Delivery]) -> None:
        """Return deliveries that were taken and may not run yet to the heads of their lanes, in their order.

        Their organizations get their turns back: were they to queue up again behind those whose deliveries did
        run, a limit that lets one through at a time would let the same organization through each time.
        """
        lanes: dict[str, Lane] = {}
        for delivery in reversed(list(deliveries)):
            self.refund(delivery)
            lane = self._lane(delivery)
            lanes.pop(lane.organization, None)
            lanes[lane.organization] = lane
            self._count(lane, delivery, 1)
            self._requeue(lane, delivery)
        for lane in lanes.values():
            if lane.until is None and lane.levels:
                self.turns.give_back(lane, 2 * len(self._lanes) + 100)

    def hold(self, delivery: Delivery, until: datetime, by: str = "") -> None:
        """Keep a delivery that was taken, and only it and what its ordering key has behind it, until an instant."""
        self.refund(delivery)
        self._count(self._lane(delivery), delivery, 1)
        heapq.heappush(self._held, (until, next(_sequence), delivery, by))

    def hold_line(self, delivery: Delivery, until: datetime) -> None:
        """Put back a delivery that has an earlier one of its ordering key elsewhere, and wait for that one."""
        self.refund(delivery)
        lane, line = self._lane(delivery), self._lines.of(delivery)
        self._count(lane, delivery, 1)
        line.busy.discard(delivery)
        line.put(delivery)
        # Another delivery of the same job may be the first: it has as little to look for.
        if line.first.rank == delivery.rank:
            line.until = until
            heapq.heappush(self._waking, (until, next(_sequence), line))
        else:
            self._offer(lane, line)

    def hold_lane(self, organization: str, until: datetime, *, pause: timedelta = ZERO, by: str = "") -> None:
        """Take nothing of an organization until an instant; `pause` is how long its limit makes it wait each time."""
        lane = self._lane_of(organization if self._fair else "")
        lane.pause, lane.held_by = pause.total_seconds(), by
        if lane.until is None or until > lane.until:
            lane.until = until
            heapq.heappush(self._waking, (until, next(_sequence), lane))
        if lane.turn is not None:
            self.turns.leave(lane)

    def hold_all(self, until: datetime, *, pause: timedelta = ZERO, by: str = "") -> None:
        """Take nothing until an instant; `pause` is how long a limit makes the queue wait each time."""
        self._pause, self._held_by = pause.total_seconds(), by
        self._held_until = max(until, self._held_until or until)

    def reopen(self) -> None:
        """Hold neither the whole nor a lane any longer; single deliveries, and what is behind others, stay held."""
        self._held_until = None
        for _, _, woken in self._waking:
            if isinstance(woken, Lane) and woken.until is not None:
                woken.until = None
                self._enter(woken)
                self.turns.rest(woken)

    def wakes_at(self) -> datetime | None:
        """Return when something held is released next, or None when nothing is held."""
        while self._waking and self._waking[0][2].until != self._waking[0][0]:
            heapq.heappop(self._waking)
        instants = [heap[0][0] for heap in (self._waking, self._held) if heap]
        if self._held_until is not None:
            instants.append(self._held_until)
        return min(instants, default=None)

    def has_next(self, now: datetime) -> bool:
        """Return whether `next` would take anything."""
        self._release(now)
        return self._held_until is None and self.turns.top() is not None

    def step_aside(
        self, held_up: Iterable[PartitionOffsets], far: Iterable[PartitionOffsets], now: datetime
    ) -> list[tuple[Delivery, datetime]]:
        """Take out what holds back the positions of partitions and cannot run soon, and say when each comes again.

        Of partitions that are held up, what is held or blocked; of those that are far behind, also the older half of
        what waits for others of its ordering key, or in a lane that has its share of the window. And what is blocked
        of lanes that are choked.
        """
        # Of each partition, what lies below: everything, and the older half of what was read and is not settled.
        near = {id(one): one.next_offset for one in held_up}
        distant = {id(one): one.halfway for one in far}
        aside: list[tuple[Delivery, datetime]] = []
        for line in [one for one in self._lines.values() if one.waiting and (one.busy or one.until)]:
            lane, until = self._lane_of(line.name[0] if self._fair else ""), line.until or now
            below = near if line.blocked else distant
            chokes = line.blocked and self.surplus.chokes(lane)
            for delivery in line.remove(
                lambda one: chokes or one.offset < below.get(id(one.offsets), 0)  # noqa: B023
            ):
                aside.append((delivery, max(until, self._aside_until(lane, now))))
        for lane in [one for one in self._lanes.values() if one.until or self.surplus.crowds(one)]:
            # Of a lane with more to read back, the next ones would be in the way of their positions just as well.
            below = near if lane.until and not lane.skipped else distant
            for delivery in self._remove(lane, lambda one: one.offset < below.get(id(one.offsets), 0)):  # noqa: B023
                aside.append((delivery, max(lane.until or now, self._aside_until(lane, now))))
        for delivery, _ in aside:
            self._count(self._lane(delivery), delivery, -1)
            self.turns.rest(self._lane(delivery))
            self.depart(delivery)
        return aside

    def drop(self, gone: Iterable[PartitionOffsets]) -> list[Delivery]:
        """Take out and return every delivery of partitions, and forget what was skipped of them."""
        parted = {id(one): one for one in gone}
        self.surplus.drop(parted.values())
        return self.take_out(lambda one: id(one.offsets) in parted)

    def take_out(self, meant: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out and return every delivery that is meant."""
        lines = list(self._lines.values())
        taken = [one for line in lines if not line.queued for one in line.remove(meant)]
        for lane in self._lanes.values():
            taken += self._remove(lane, meant)
        held = [one for _, _, one, _ in self._held if meant(one)]
        if held:
            self._held = [entry for entry in self._held if not meant(entry[2])]
            heapq.heapify(self._held)
            taken += held
        for delivery in taken:
            lane = self._lane(delivery)
            self._count(lane, delivery, -1)
            self.turns.rest(lane)
            self.released(delivery)
        return taken

    def part(self, running: Container[Delivery]) -> None:
        """Let go of ordering keys whose deliveries are gone with their partitions, but for what still runs."""
        for line in list(self._lines.values()):
            line.busy = {one for one in line.busy if not one.offsets.gone or one in running}
            self._offer(self._lane_of(line.name[0] if self._fair else ""), line)

    def _remove(self, lane: Lane, meant: Callable[[Delivery], bool]) -> list[Delivery]:
        removed = lane.remove(meant)
        if lane.turn is not None and not lane.levels:
            self.turns.leave(lane)
        return removed

    def _lane(self, delivery: Delivery) -> Lane:
        return self._lane_of(delivery.organization_id if self._fair else "")

    def _lane_of(self, organization: str) -> Lane:
        lane = self._lanes.get(organization)
        if lane is None:
            lane = self._lanes[organization] = Lane(
                organization, self._weights(organization), self.turns.time
            )
            self.turns.rest(lane)
        return lane

    def _requeue(self, lane: Lane, delivery: Delivery) -> None:
        """Put a delivery that was taken out, or held, at the head of its lane or in its place in its line."""
        if delivery.ordering_key is None:
            lane.put(delivery, delivery.priority, first=True)
            return
        line = self._lines.of(delivery)
        line.busy.discard(delivery)
        line.put(delivery)
        self._offer(lane, line, first=True)

    def _offer(self, lane: Lane, line: Line, *, first: bool = False) -> None:
        """Let the first one of a line be taken in its turn, if it may be."""
        if line.free:
            line.queued = True
            lane.put(line, line.first.priority, first=first)
            self._enter(lane)
        else:
            self._lines.close(line)

    def _enter(self, lane: Lane) -> None:
        """Let a lane be served, unless it is held or has nothing to take."""
        if lane.until is None and lane.turn is None and lane.levels:
            lane.weight = self._weights(lane.organization)
            self.turns.enter(lane)

    def _charge(self, delivery: Delivery, seconds: float) -> None:
        if delivery.charged < 0:
            return
        lane = self._lanes.get(delivery.organization_id) or self._lane(delivery)
        lane.used += int(seconds / lane.weight * 1e9) - delivery.charged
        lane.out -= 1
        delivery.charged = -1
        if not lane.records:
            self.turns.rest(lane)

    def _release(self, now: datetime) -> None:
        if self._held_until is not None and self._held_until <= now:
            self._held_until = None
        while self._waking and self._waking[0][0] <= now:
            until, _, woken = heapq.heappop(self._waking)
            if woken.until != until:
                continue
            woken.until = None
            if isinstance(woken, Line):
                self._offer(self._lane_of(woken.name[0] if self._fair else ""), woken)
            else:
                self._enter(woken)
                self.turns.rest(woken)
        while self._held and self._held[0][0] <= now:
            delivery = heapq.heappop(self._held)[2]
            lane = self._lane(delivery)
            self._requeue(lane, delivery)
            self._enter(lane)

    def _aside_until(self, lane: Lane, now: datetime) -> datetime:
        """Return when what steps aside of a lane comes again: when all that waits there has had its turn."""
        waiting = lane.records + (len(lane.skipped) if lane.skipped else 0)
        seconds = timedelta(seconds=waiting * self.seconds_each(lane))
        return now + min(max(seconds, SHORTEST_ASIDE), LONGEST_ASIDE)

    def _count(self, lane: Lane, delivery: Delivery, step: int) -> None:
        size = step * len(delivery.value)
        lane.records += step
        lane.bytes += size
        self.records += step
        self.bytes += size
