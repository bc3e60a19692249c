"""Which position of a partition may be committed: never beyond the lowest record that is not settled."""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from streams.offset_map import decode, encode

BEHIND_SKIPPED = 10
"""While records are skipped, so many that are settled behind them take as much of a span as one does otherwise."""

SKIPPED_BOUND = 500_000
"""How many records of a partition may be skipped, at 17 bytes each, before it is not read further."""

_OPEN, _SETTLED, _SKIPPED = range(3)
_RUN = re.compile(bytes([_SETTLED]) + b"+")
_COMPACTED_AT = 1024


class PartitionOffsets:
    """The offsets of one assigned partition that were read, in order, and what is known of them.

    An offset is open, settled, or skipped: read, let go of, and to be read back. It lives as long as one assignment:
    after a revocation it is dropped, and whatever still settles on it changes nothing. Nine bytes an offset.
    """

    __slots__ = (
        "_before",
        "_before_ms",
        "_first",
        "_latest_ms",
        "_read",
        "_states",
        "gone",
        "next_offset",
        "partition",
        "position",
        "settled",
        "skipped",
        "topic",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.next_offset = 0
        """The next offset that has not been read; records below it were read already."""
        self.position: int | None = None
        """What may be committed, or None while nothing was settled."""
        self.gone = False
        """The partition is being handed over: nothing of it begins any more."""
        self.settled = 0
        """How many records are settled and not covered by the position, for one before them is not."""
        self.skipped = 0
        self._before = array("q")
        """Where ranges that were settled before this assignment start and end, in turn."""
        self._before_ms = self._latest_ms = 0
        """The timestamps of the youngest record that may be in those, and of the youngest that was read."""
        self._read = array("q")
        self._states = bytearray()
        self._first = 0
        """Where the lowest offset that is not settled is in the two; what is before that is cut off now and then."""

    def restore(self, position: int, metadata: str) -> None:
        """Take over what an assignment before had settled beyond its position, by the metadata of the commit.

        Raises ValueError when that cannot be read. Once something was read it comes too late, and changes nothing.
        """
        if not self.next_offset:
            self._before_ms, bounds = decode(position, metadata)
            self._before, self._latest_ms = array("q", bounds), self._before_ms

    def read(self, offset: int, timestamp_ms: int = 0) -> bool:
        """Note that a record was read; False when nothing is left to do: it was read or settled before."""
        if offset < self.next_offset:
            return False
        # A younger record has the offset of one that was lost, with the end of its log.
        settled = (
            len(self._before) > 0
            and timestamp_ms <= self._before_ms
            and bisect_right(self._before, offset) % 2 == 1
        )
        if timestamp_ms > self._latest_ms:
            self._latest_ms = timestamp_ms
        self._read.append(offset)
        self._states.append(_SETTLED if settled else _OPEN)
        self.next_offset = offset + 1
        if settled:
            self.settled += 1
            self._advance()
        return not settled

    def skip(self, offset: int) -> None:
        """Note that a record that was read is let go of, and will be read back."""
        self._states[self._place(offset)] = _SKIPPED
        self.skipped += 1

    def take_back(self, offset: int) -> bool:
        """Note that a skipped record was read back; False when it was not skipped."""
        place = self._place(offset)
        if place == len(self._read) or self._read[place] != offset or self._states[place] != _SKIPPED:
            return False
        self._states[place] = _OPEN
        self.skipped -= 1
        return True

    def settle(self, offset: int) -> None:
        """Note that the outcome of a record is durable."""
        read, states = self._read, self._states
        place = self._place(offset)
        if place == len(read) or read[place] != offset or states[place] != _OPEN:
            return
        states[place] = _SETTLED
        self.settled += 1
        self._advance()

    def _advance(self) -> None:
        read, states = self._read, self._states
        end = len(read)
        while self._first < end and states[self._first] == _SETTLED:
            self._first += 1
            self.settled -= 1
        if self._first >= _COMPACTED_AT and self._first * 2 >= end:
            del read[: self._first], states[: self._first]
            self._first = 0
        # Offsets may have gaps, so the position is the lowest open one, or behind the last that was read.
        self.position = read[self._first] if self._first < len(read) else self.next_offset

    def metadata(self) -> str:
        """Return what is to be committed beside the position: what is settled beyond it."""
        return encode(self.position or 0, self._latest_ms, self._beyond())

    def _beyond(self) -> Iterator[tuple[int, int]]:
        at = self._states.find(_SETTLED, self._first)
        while at >= 0 and (run := _RUN.match(self._states, at)):
            yield self._read[at], self._read[run.end() - 1] + 1
            at = self._states.find(_SETTLED, run.end())
        for start, end in zip(self._before[::2], self._before[1::2], strict=True):
            if end > self.next_offset:  # not read again yet
                yield max(start, self.next_offset), end

    def _place(self, offset: int) -> int:
        return bisect_left(self._read, offset, self._first)

    @property
    def unsettled(self) -> int:
        """Return how many records were read and are not settled, skipped or not."""
        return len(self._read) - self._first - self.settled

    @property
    def held_back(self) -> int:
        """Return how many records are settled and not covered by the position, for one in memory before them is not.

        What lies behind a skipped record does not count: that one holds the position whatever becomes of others.
        """
        if not self.skipped:
            return self.settled
        return self._states.count(_SETTLED, self._first, self._states.find(_SKIPPED, self._first))

    @property
    def behind(self) -> int:
        """Return how much of its span is settled and not covered by the position."""
        return self.settled // BEHIND_SKIPPED if self.skipped else self.settled

    @property
    def span(self) -> int:
        """Return how much lies between the position and what was read: what is in memory, and a crash reads again."""
        return self.unsettled - self.skipped + self.behind

    def has_room(self, most: int) -> bool:
        """Return whether it may be read further, with a span of at most so much."""
        return self.span < most and self.skipped < SKIPPED_BOUND

    @property
    def halfway(self) -> int:
        """Return the offset below which the older half of what was read and is not covered by the position lies."""
        middle = (self._first + len(self._read)) // 2
        return self._read[middle] if self._first < len(self._read) else self.next_offset
