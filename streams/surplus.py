"""What of a lane that has its share of the window is skipped, and what of it is read back when.

A skipped record is still there, in its topic. Nothing of it is kept but its offset, which stays unsettled.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from streams.delivery import Delivery, Record, headers_of, priority_of
from streams.offsets import PartitionOffsets

if TYPE_CHECKING:
    from streams.lanes import Lane
    from streams.window import Window

LASTS_SECONDS = 0.5
"""For how long a lane must have work of which something is skipped: many times what reading back takes."""

READ_BACK = 500
"""Within how many offsets what is read back at once lies."""

LEAST_URGENT = 10


class Skipped:
    """The offsets of one lane's records that are skipped, by partition, in order: eight bytes each."""

    __slots__ = ("_of", "most_urgent")

    def __init__(self) -> None:
        self._of: dict[PartitionOffsets, array[int]] = {}
        self.most_urgent = LEAST_URGENT

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, offsets: PartitionOffsets, offset: int, priority: int) -> None:
        """Skip a record that was just read."""
        places = self._of.get(offsets)
        if places is None:
            places = self._of[offsets] = array("q")
        places.append(offset)
        offsets.skip(offset)
        self.most_urgent = min(self.most_urgent, priority)

    def first(self, offsets: PartitionOffsets) -> int:
        """Return the oldest one of a partition, 0 when there is none."""
        places = self._of.get(offsets)
        return places[0] if places else 0

    def oldest(self, most: int) -> tuple[PartitionOffsets, Sequence[int]]:
        """Return the oldest ones of a partition, at most so many, and within `READ_BACK` offsets."""
        offsets, places = next(iter(self._of.items()))
        return offsets, places[: bisect_left(places, places[0] + READ_BACK, 0, min(most, len(places)))]

    def forget(self, offsets: PartitionOffsets, count: int | None) -> None:
        """Forget the oldest ones of a partition, or all."""
        places = self._of.get(offsets)
        if places is not None:
            del places[:count]
            if not places:
                del self._of[offsets]


class Surplus:
    """The lanes of a window of which something is skipped; their number counts, not that of what is skipped."""

    def __init__(self, window: "Window") -> None:
        self._window = window
        self.lanes: dict[bytes, Lane] = {}
        """By the keys of their records."""

    def __len__(self) -> int:
        return sum(len(lane.skipped) for lane in self.lanes.values() if lane.skipped)

    def skip(self, lane: "Lane", offsets: PartitionOffsets, offset: int, priority: int) -> None:
        """Keep nothing of a record that was just read but its offset, until it is read back."""
        if lane.skipped is None:
            lane.skipped = Skipped()
            self.lanes[lane.organization.encode()] = lane
        lane.skipped.add(offsets, offset, priority)

    def skipped_unread(
        self,
        lane: "Lane",
        record: Record,
        offsets: PartitionOffsets,
        must_see: Callable[[Mapping[str, bytes]], bool],
    ) -> bool:
        """Skip a record of a lane of which others are skipped, by its headers alone; False when it must be looked at.

        `must_see` says of headers that their record must be looked at.
        """
        headers = headers_of(record)
        priority = priority_of(headers)
        # What kept its place in an order may stand before all that is skipped.
        if "rank" in headers or self.is_urgent(lane, priority) or must_see(headers):
            return False
        self.skip(lane, offsets, record.offset, priority)
        return True

    def low(self) -> "tuple[Lane, PartitionOffsets, Sequence[int]] | None":
        """Return the lane that most needs what is skipped of it, and what to read back; None when none is low."""
        lane = min(self.lanes.values(), key=self._filled, default=None)
        if lane is None or lane.skipped is None or self._filled(lane) >= 0.5:
            return None
        return lane, *lane.skipped.oldest(max(1, int(self.share(lane)) - lane.records))

    def taken_back(self, lane: "Lane", offsets: PartitionOffsets, count: int | None = None) -> None:
        """Forget the oldest ones of a lane and a partition, which are in the window now, or all, which are gone."""
        if lane.skipped is not None:
            lane.skipped.forget(offsets, count)
            if not lane.skipped:
                lane.skipped = None
                del self.lanes[lane.organization.encode()]
                self._window.turns.rest(lane)

    def drop(self, gone: Iterable[PartitionOffsets]) -> None:
        """Forget what is skipped of partitions that are handed over."""
        for offsets in gone:
            for lane in list(self.lanes.values()):
                self.taken_back(lane, offsets)

    def crowds(self, lane: "Lane") -> bool:
        """Return whether a lane holds as much of the window as is free, times its weight."""
        window, weight = self._window, lane.weight
        return (
            lane.records >= weight * (window.records_bound - window.records)
            or lane.bytes >= weight * (window.bytes_bound - window.bytes)
        )  # fmt: skip

    def has_room(self, lane: "Lane", size_bytes: int) -> bool:
        """Return whether so much that was read back of a lane fits into its share of the window."""
        window = self._window
        return lane.bytes + size_bytes < lane.weight * (window.bytes_bound - window.bytes - size_bytes)

    def takes(self, lane: "Lane", delivery: Delivery) -> bool:
        """Return whether a delivery of a lane that crowds comes in all the same: it would be missed, or is urgent."""
        skipped, ordered = lane.skipped, delivery.ordering_key is not None
        if not ordered and self.is_urgent(lane, delivery.priority):
            return True
        if skipped is None:
            return lane.records < self._lasting(lane)
        # What kept its place in the order of its key, and was there before all that is skipped, goes before it.
        return ordered and delivery.rank < skipped.first(delivery.offsets)

    def is_urgent(self, lane: "Lane", priority: int) -> bool:
        """Return whether a priority is more urgent than all that waits in a lane."""
        least = lane.skipped.most_urgent if lane.skipped else LEAST_URGENT
        return bool(lane.levels) and priority < least and priority < min(lane.levels)

    def share(self, lane: "Lane") -> float:
        """Return how many records a lane is filled up to: its share of the window, and work for long enough."""
        window, weight = self._window, lane.weight
        free = window.records_bound - window.records + lane.records
        return max(free * weight / (1 + weight), min(self._lasting(lane), window.records_bound))

    @property
    def is_choked(self) -> bool:
        """Return whether there is a lane that `chokes`."""
        return any(map(self.chokes, self.lanes.values()))

    def chokes(self, lane: "Lane") -> bool:
        """Return whether a lane has its share, all of which waits for others of their keys, and more is skipped."""
        if lane.skipped is None or lane.levels or lane.until is not None:
            return False
        return lane.records >= self.share(lane)

    def _filled(self, lane: "Lane") -> float:
        """Return which part of its share a lane has; none when nothing of it may be taken, but if it has all."""
        window, weight = self._window, lane.weight
        free = window.bytes_bound - window.bytes + lane.bytes
        filled = max(lane.records / self.share(lane), lane.bytes * (1 + weight) / max(free * weight, 1))
        return filled if lane.levels or lane.until is not None or filled >= 1 else 0.0

    def _lasting(self, lane: "Lane") -> float:
        """Return how many records keep a lane busy for long enough."""
        return max(1.0, LASTS_SECONDS / self._window.seconds_each(lane))
