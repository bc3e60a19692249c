"""Whose turn it is: the lanes of a window by what they have used, and when they are forgotten."""

import heapq
from collections.abc import Callable, Iterator
from itertools import count

from streams.lanes import Lane

OVERHEAD_SECONDS = 0.000_1
"""What a job costs besides its handler: it is read, admitted and settled."""

SMOOTHING = 1 / 16
"""The weight of the last job in the moving averages of what jobs take."""

_sequence = count(1)


class Pace:
    """What jobs take of a slot, in seconds: moving averages, by job type and of all."""

    def __init__(self) -> None:
        self.by_type: dict[str, float] = {}
        self.average = OVERHEAD_SECONDS

    def learn(self, job_type: str, used: float) -> None:
        """Take in what one job has used."""
        estimate = self.by_type.get(job_type, used)
        self.by_type[job_type] = estimate + (used - estimate) * SMOOTHING
        self.average += (used - self.average) * SMOOTHING


class Turns:
    """The lanes that have something to take, the one that has used least first.

    An entry whose lane has another one by now is void, and is dropped when it comes up.
    """

    def __init__(self) -> None:
        self.time = 0
        """The virtual time: what the lane that was served last had used."""
        self.weights = 0.0
        """Of all lanes that have something to take."""
        self._heap: list[tuple[int, int, Lane]] = []
        self._idle: list[tuple[int, int, Lane]] = []

    def top(self) -> Lane | None:
        """Return the lane that is next, after putting those in their places that have used more than was charged."""
        heap = self._heap
        while heap:
            turn = heap[0]
            lane = turn[2]
            if lane.turn is not turn:
                heapq.heappop(heap)
            elif lane.used > turn[0]:
                lane.turn = lane.used, next(_sequence), lane
                heapq.heapreplace(heap, lane.turn)
            else:
                return lane
        return None

    def charge(self, lane: Lane, nanoseconds: int) -> None:
        """Charge the lane on top, of which a delivery was taken, and put it in its new place."""
        if lane.used > self.time:
            self.time = lane.used
        lane.used += nanoseconds
        lane.out += 1
        if lane.levels:
            lane.turn = lane.used, next(_sequence), lane
            heapq.heapreplace(self._heap, lane.turn)
        else:
            heapq.heappop(self._heap)
            self.leave(lane)

    def enter(self, lane: Lane) -> None:
        """Let a lane be served that was empty or held; meanwhile it has saved nothing."""
        top = self.top()
        # A moment less than the lane that has used least, so that it is served before that one.
        lane.used = max(lane.used, self.time, top.used - 1 if top is not None else 0)
        lane.turn = lane.used, next(_sequence), lane
        heapq.heappush(self._heap, lane.turn)
        self.weights += lane.weight

    def give_back(self, lane: Lane, most: int) -> None:
        """Give a lane its turn back that was served in vain; after many of those, keep no more than `most` entries."""
        if lane.turn is None:
            self.weights += lane.weight
        lane.turn = lane.used, -next(_sequence), lane
        heapq.heappush(self._heap, lane.turn)
        self.time = min(self.time, lane.used)
        if len(self._heap) > most:
            self._heap = [turn for turn in self._heap if turn[2].turn is turn]
            heapq.heapify(self._heap)

    def leave(self, lane: Lane) -> None:
        """Serve a lane no more until it enters again."""
        lane.turn = None
        self.weights -= lane.weight
        self.rest(lane)

    def weigh(self, weights: Callable[[str], float]) -> None:
        """Look up the weights anew."""
        for turn in self._heap:
            lane = turn[2]
            if lane.turn is turn:
                before, lane.weight = lane.weight, weights(lane.organization)
                self.weights += lane.weight - before

    def rest(self, lane: Lane) -> None:
        """Let an empty lane be forgotten in time."""
        if not (lane.records or lane.out or lane.skipped or lane.idle):
            lane.idle = True
            heapq.heappush(self._idle, (lane.used, next(_sequence), lane))

    def forgotten(self, most: int) -> Iterator[Lane]:
        """Yield empty lanes that the virtual time has caught up with, and at any rate all but the last `most`."""
        idle = self._idle
        while idle and (idle[0][0] <= self.time or len(idle) > most):
            used, _, lane = heapq.heappop(idle)
            if lane.records or lane.out or lane.skipped or lane.until is not None:
                lane.idle = False
            elif lane.used > max(used, self.time) and len(idle) < most:
                heapq.heappush(idle, (lane.used, next(_sequence), lane))
            else:
                yield lane
