"""The position of a partition, whatever order records are settled in."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.offsets import BEHIND_SKIPPED, PartitionOffsets


class Positions(RuleBasedStateMachine):
    """Read with gaps and seeks back; settle in any order, repeatedly, even what was never read."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = PartitionOffsets("jobs.emails", 0)
        self.read: set[int] = set()
        self.settled: set[int] = set()
        self.skipped: set[int] = set()
        self.highest = 0

    @rule(gap=st.integers(0, 5))
    def read_on(self, gap: int) -> None:
        offset = self.offsets.next_offset + gap
        assert self.offsets.read(offset)
        self.read.add(offset)

    @precondition(lambda self: self.offsets.next_offset > 0)
    @rule(data=st.data())
    def read_again(self, data: st.DataObject) -> None:
        assert not self.offsets.read(data.draw(st.integers(0, self.offsets.next_offset - 1)))

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.read)))
        self.offsets.settle(offset)
        self.settled |= {offset} - self.skipped

    @rule(gap=st.integers(0, 5))
    def read_and_skip(self, gap: int) -> None:
        self.read_on(gap)
        self.skipped.add(max(self.read))
        self.offsets.skip(max(self.read))

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.skipped) or sorted(self.read)))
        assert self.offsets.take_back(offset) == (offset in self.skipped)
        assert not self.offsets.take_back(offset)
        self.skipped.discard(offset)

    @rule(beyond=st.integers(0, 100))
    def settle_what_was_never_read(self, beyond: int) -> None:
        self.offsets.settle(self.offsets.next_offset + beyond)

    @invariant()
    def is_never_beyond_the_lowest_open_offset(self) -> None:
        position, still_open = self.offsets.position, self.read - self.settled
        if position is None:
            return
        assert all(position <= offset for offset in still_open)
        assert position <= self.offsets.next_offset
        assert position >= self.highest, "a position that was committed must not go back"
        self.highest = position

    @invariant()
    def covers_all_that_is_settled_below_the_lowest_open_offset(self) -> None:
        lowest = min(self.read - self.settled, default=self.offsets.next_offset)
        for offset in self.settled:
            if offset < lowest:
                assert self.offsets.position is not None
                assert offset < self.offsets.position

    @invariant()
    def counts_what_is_open(self) -> None:
        still_open = self.read - self.settled
        assert self.offsets.unsettled == len(still_open)
        assert self.offsets.skipped == len(self.skipped)
        ahead = {one for one in self.settled if one > min(still_open, default=self.offsets.next_offset)}
        assert self.offsets.settled == len(ahead)
        counted = len(ahead) // BEHIND_SKIPPED if self.skipped else len(ahead)
        assert self.offsets.behind == counted
        assert self.offsets.span == len(still_open) - len(self.skipped) + counted
        assert self.offsets.held_back == sum(one < min(self.skipped, default=one + 1) for one in ahead)

    @invariant()
    def remembers_little_that_is_behind_the_position(self) -> None:
        assert len(self.offsets._read) <= 1024 + 2 * (self.offsets.unsettled + self.offsets.settled)


TestPositions = Positions.TestCase
TestPositions.settings = settings(max_examples=200, stateful_step_count=40)


def test_a_gap_at_the_head_is_jumped_over() -> None:
    offsets = PartitionOffsets("jobs.emails", 0)
    for offset in (7, 9, 20):
        offsets.read(offset)
    offsets.settle(7)
    assert offsets.position == 9
    offsets.settle(20)
    assert offsets.position == 9
    offsets.settle(9)
    assert offsets.position == 21


def test_nothing_settled_is_no_position() -> None:
    offsets = PartitionOffsets("jobs.emails", 0)
    offsets.read(3)
    assert offsets.position is None
    offsets.settle(2)
    assert offsets.position is None


@given(st.permutations(range(30)))
def test_any_order_ends_at_the_same_position(order: list[int]) -> None:
    offsets = PartitionOffsets("jobs.emails", 0)
    for offset in range(30):
        offsets.read(offset)
    for offset in order:
        offsets.settle(offset)
    assert (offsets.position, offsets.unsettled, offsets.span) == (30, 0, 0)


def test_what_is_behind_the_position_is_cut_off() -> None:
    offsets = PartitionOffsets("jobs.emails", 0)
    for offset in range(10_000):
        offsets.read(offset)
        offsets.settle(offset)
    assert len(offsets._read) == len(offsets._states) <= 1024
    assert offsets.position == 10_000
