"""What is settled beyond a position goes through the metadata of a commit, as much of it as fits."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.offset_map import METADATA_BOUND, PREFIX, OffsetMap, decode, encode
from streams.offsets import PartitionOffsets


def read(offsets: PartitionOffsets, *numbers: int, since_ms: int = 1_000) -> list[int]:
    """Read records, of which one a millisecond was written, and return those that are left to do."""
    return [one for one in numbers if offsets.read(one, timestamp_ms=since_ms + one)]


def batched(found: OffsetMap) -> Iterable[tuple[int, int]]:
    """Return the ranges."""
    return zip(found.bounds[::2], found.bounds[1::2], strict=True)


def settled(*numbers: int, read_to: int) -> PartitionOffsets:
    """Return the offsets of a partition that was read from 0 on, with these settled."""
    offsets = PartitionOffsets("jobs.emails", 0)
    read(offsets, *range(read_to))
    for one in numbers:
        offsets.settle(one)
    return offsets


def after(before: PartitionOffsets) -> PartitionOffsets:
    """Return those of the next assignment."""
    offsets = PartitionOffsets("jobs.emails", 0)
    offsets.restore(before.position or 0, before.metadata())
    return offsets


@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**6)), min_size=1, max_size=50),
    st.integers(0, 10**12),
    st.integers(0, 10**14),
)
def test_any_ranges_come_back(steps: list[tuple[int, int]], position: int, latest_ms: int) -> None:
    ranges, at = [], position
    for gap, length in steps:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    found = decode(position, encode(position, latest_ms, ranges))
    assert (found.latest_ms, list(batched(found))) == (latest_ms, ranges)


def test_no_more_is_written_than_a_broker_takes_and_the_lowest_is() -> None:
    ranges = [(2**40 + 2 * n, 2**40 + 2 * n + 1) for n in range(10_000)]
    written = encode(7, 2**41, ranges)
    assert METADATA_BOUND - 40 < len(written) <= METADATA_BOUND
    found = list(batched(decode(7, written)))
    assert found == ranges[: len(found)]


@pytest.mark.parametrize("metadata", ["", "somebody else's", "settled/2:AAA="])
def test_metadata_of_another_kind_says_nothing(metadata: str) -> None:
    assert decode(3, metadata).bounds == ()


@pytest.mark.parametrize("rest", ["", "AAE=", "gA==", "AAEBgA==", "%%%", "AQ", "AAH///////////wE="])
def test_metadata_that_is_damaged_is_an_error(rest: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whoever catches it tells which metadata it was
        decode(0, PREFIX + rest)


def test_what_was_settled_beyond_the_position_is_not_done_again() -> None:
    before = settled(0, 2, 3, 5, read_to=8)
    offsets = after(before)
    assert read(offsets, *range(1, 10)) == [1, 4, 6, 7, 8, 9]
    assert (offsets.position, offsets.settled, offsets.unsettled) == (1, 3, 6)
    offsets.settle(1)
    assert offsets.position == 4


@given(st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=5), st.data())
def test_through_any_number_of_assignments_each_record_is_left_to_do_until_it_is_settled(
    settles: list[set[int]], data: st.DataObject
) -> None:
    done: set[int] = set()
    position, metadata = 0, ""
    for numbers in settles:
        offsets = PartitionOffsets("jobs.emails", 0)
        offsets.restore(position, metadata)
        seen = {*range(position, data.draw(st.integers(position, 41)))}
        assert read(offsets, *sorted(seen)) == sorted(seen - done)
        for one in numbers & seen:
            offsets.settle(one)
            done.add(one)
        if offsets.position is not None:
            position, metadata = offsets.position, offsets.metadata()


def test_an_assignment_that_ends_early_passes_on_what_it_did_not_read() -> None:
    offsets = after(settled(0, 2, 3, 5, 6, read_to=8))
    assert read(offsets, 1, 2) == [1]
    offsets = after(offsets)
    assert read(offsets, *range(1, 8)) == [1, 4, 7]


def test_a_record_that_took_the_offset_of_a_lost_one_is_left_to_do() -> None:
    offsets = after(settled(0, 2, 4, read_to=6))
    assert read(offsets, 1, 2) == [1]
    assert read(offsets, 3, 4, 5, since_ms=2_000) == [3, 4, 5]


def test_the_youngest_record_is_passed_on_with_what_was_not_read() -> None:
    offsets = after(settled(0, 2, 4, read_to=6))
    assert read(offsets, 1) == [1]
    offsets.settle(1)
    assert read(after(offsets), *range(2, 6)) == [3, 5]


def test_a_head_that_retention_removed_holds_back_nothing() -> None:
    offsets = after(settled(0, 2, 3, 5, read_to=8))
    assert read(offsets, 2, 3, 4) == [4]
    assert offsets.position == 4


def test_once_something_was_read_it_comes_too_late() -> None:
    offsets = settled(0, read_to=2)
    offsets.restore(1, settled(0, 3, read_to=5).metadata())
    assert read(offsets, 2, 3) == [2, 3]


def test_nothing_beyond_the_position_is_no_metadata() -> None:
    assert settled(0, 1, read_to=2).metadata() == ""
