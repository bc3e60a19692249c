"""Which position of a partition may be committed: never beyond the lowest record that is not settled."""

from collections import deque


class PartitionOffsets:
    """The offsets of one assigned partition that were read, in order, and which of them are settled.

    It lives as long as one assignment: after a revocation it is dropped, and whatever still settles on it
    changes nothing.
    """

    __slots__ = ("_open", "_settled", "gone", "next_offset", "partition", "position", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.next_offset = 0
        """The next offset that has not been read; records below it were read already."""
        self.position: int | None = None
        """What may be committed, or None while nothing was settled."""
        self.gone = False
        """The partition is being handed over: nothing of it begins any more."""
        self._open: deque[int] = deque()
        self._settled: set[int] = set()

    def read(self, offset: int) -> bool:
        """Note that a record was read; False when it had been before, as after a seek back."""
        if offset < self.next_offset:
            return False
        self._open.append(offset)
        self.next_offset = offset + 1
        return True

    def settle(self, offset: int) -> None:
        """Note that the outcome of a record is durable."""
        settled, waiting = self._settled, self._open
        if not waiting or not waiting[0] <= offset < self.next_offset:
            return
        settled.add(offset)
        while waiting and waiting[0] in settled:
            settled.remove(waiting.popleft())
        # Offsets may have gaps, so the position is the lowest open one, or behind the last that was read.
        self.position = waiting[0] if waiting else self.next_offset

    @property
    def unsettled(self) -> int:
        """Return how many records were read and are not settled."""
        return len(self._open) - len(self._settled)

    @property
    def held_back(self) -> int:
        """Return how many records are settled and not covered by the position, for one before them is not."""
        return len(self._settled)

    @property
    def span(self) -> int:
        """Return how many offsets lie between the position and what was read: what a crash reads again."""
        return self.next_offset - self._open[0] if self._open else 0
