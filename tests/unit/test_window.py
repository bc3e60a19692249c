"""Which record is next: in turn, bounded, and none lost on the way."""

from datetime import datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.delivery import Delivery
from streams.offsets import PartitionOffsets
from streams.window import Window
from tests.deliveries import NOON, delivery

SECOND = timedelta(seconds=1)
ORGANIZATIONS = ("acme", "globex", "initech")


def window(records: int = 1000, size_bytes: int = 1_000_000) -> Window:
    return Window(records=records, size_bytes=size_bytes)


def fill(into: Window, **counts: int) -> None:
    for organization, count in counts.items():
        for number in range(count):
            into.add(delivery(organization, number))


def ids(taken: list[Delivery]) -> list[str]:
    return [one.job_id for one in taken]


def test_organizations_take_turns_and_keep_their_order() -> None:
    full = window()
    fill(full, acme=3, globex=1, initech=2)
    assert ids(full.next(10, NOON)) == ["acme-0", "globex-0", "initech-0", "acme-1", "initech-1", "acme-2"]


def test_one_record_behind_a_thousand_of_another_organization_is_next() -> None:
    full = window()
    fill(full, acme=1000)
    full.next(5, NOON)
    fill(full, globex=1)
    assert "globex-0" in ids(full.next(2, NOON))


@given(st.lists(st.sampled_from(ORGANIZATIONS), min_size=1, max_size=60), st.lists(st.integers(1, 7)))
def test_no_organization_is_served_twice_while_another_waits(arrivals: list[str], sizes: list[int]) -> None:
    full = window()
    for number, organization in enumerate(arrivals):
        full.add(delivery(organization, number))
    order = []
    for size in [*sizes, 100]:
        order += [one.organization_id for one in full.next(size, NOON)]
    assert_turns(order)


@given(
    st.dictionaries(st.sampled_from(ORGANIZATIONS), st.integers(1, 20), min_size=2),
    st.integers(1, 8),
    st.integers(1, 8),
)
def test_a_limit_that_lets_few_through_still_takes_turns(
    counts: dict[str, int], asked: int, allowed: int
) -> None:
    full = window()
    fill(full, **counts)
    order = []
    while taken := full.next(asked, NOON):
        order += [one.organization_id for one in taken[:allowed]]
        full.put_back(taken[allowed:])
    assert len(order) == sum(counts.values())
    assert_turns(order)


def assert_turns(order: list[str]) -> None:
    """Between two turns of an organization, each other one that still has records after them had one."""
    for start, organization in enumerate(order):
        if organization not in order[start + 1 :]:
            continue
        again = order.index(organization, start + 1)
        for other in set(order[again + 1 :]) - {organization}:
            assert other in order[start + 1 : again], (other, organization, order)


def test_what_is_put_back_comes_in_its_old_order() -> None:
    full = window()
    fill(full, acme=4, globex=3)
    before = full.next(5, NOON)
    full.put_back(before)
    assert ids(full.next(7, NOON)) == [
        "acme-0", "globex-0", "acme-1", "globex-1", "acme-2", "globex-2", "acme-3",
    ]  # fmt: skip


def test_a_held_delivery_waits_alone_and_comes_first_of_its_organization() -> None:
    full = window()
    fill(full, acme=2)
    (first,) = full.next(1, NOON)
    full.hold(first, NOON + SECOND)
    assert full.wakes_at() == NOON + SECOND
    assert ids(full.next(1, NOON)) == ["acme-1"]
    fill(full, globex=1)
    full.add(delivery("acme", 2))
    assert ids(full.next(1, NOON + SECOND)) == ["globex-0"]
    assert ids(full.next(2, NOON + SECOND)) == ["acme-0", "acme-2"]


def test_a_held_organization_lets_the_others_pass() -> None:
    full = window()
    fill(full, acme=2, globex=2)
    full.hold_lane("acme", NOON + SECOND)
    full.hold_lane("acme", NOON)
    full.add(delivery("acme", 2))
    assert ids(full.next(10, NOON)) == ["globex-0", "globex-1"]
    assert full.wakes_at() == NOON + SECOND
    assert ids(full.next(10, NOON + SECOND)) == ["acme-0", "acme-1", "acme-2"]
    assert full.wakes_at() is None


def test_an_organization_may_be_held_before_it_has_records() -> None:
    full = window()
    full.hold_lane("acme", NOON + SECOND)
    full.put_back([delivery("acme")])
    assert full.next(1, NOON) == []
    assert ids(full.next(1, NOON + SECOND)) == ["acme-0"]


def test_a_held_window_gives_nothing_to_anybody() -> None:
    full = window()
    fill(full, acme=1, globex=1)
    full.hold_all(NOON + SECOND)
    full.hold_all(NOON)
    assert full.next(10, NOON) == []
    assert full.wakes_at() == NOON + SECOND
    assert len(full.next(10, NOON + SECOND)) == 2


def test_it_is_full_by_records_or_by_bytes() -> None:
    by_records, by_bytes = window(records=2), window(size_bytes=20)
    for full in (by_records, by_bytes):
        full.add(delivery("acme", 0, value=b"x" * 10))
        assert not full.full
        full.add(delivery("acme", 1, value=b"x" * 10))
        assert full.full
        full.next(1, NOON)
        assert not full.full


class Conservation(RuleBasedStateMachine):
    """Whatever is done with it, a delivery is in the window, with its reader, or dropped; once."""

    def __init__(self) -> None:
        super().__init__()
        self.window = window()
        self.partitions = [PartitionOffsets("jobs.emails", number) for number in range(3)]
        self.inside: set[Delivery] = set()
        self.outside: list[Delivery] = []
        self.now: datetime = NOON
        self.number = 0

    @rule(organization=st.sampled_from(ORGANIZATIONS), partition=st.integers(0, 2), size=st.integers(0, 50))
    def add(self, organization: str, partition: int, size: int) -> None:
        self.number += 1
        one = delivery(organization, self.number, offsets=self.partitions[partition], value=b"x" * size)
        self.window.add(one)
        self.inside.add(one)

    @rule(limit=st.integers(0, 10))
    def take(self, limit: int) -> None:
        some = self.window.has_next(self.now)
        taken = self.window.next(limit, self.now)
        assert bool(taken) == (some and limit > 0)
        assert len(taken) <= limit
        assert set(taken) <= self.inside
        self.inside -= set(taken)
        self.outside += taken

    @rule(count=st.integers(0, 5))
    def put_back(self, count: int) -> None:
        back, self.outside = self.outside[:count], self.outside[count:]
        self.window.put_back(back)
        self.inside |= set(back)

    @precondition(lambda self: self.outside)
    @rule(seconds=st.integers(0, 5))
    def hold(self, seconds: int) -> None:
        one = self.outside.pop()
        self.window.hold(one, self.now + seconds * SECOND)
        self.inside.add(one)

    @rule(organization=st.sampled_from(ORGANIZATIONS), seconds=st.integers(0, 5))
    def hold_lane(self, organization: str, seconds: int) -> None:
        self.window.hold_lane(organization, self.now + seconds * SECOND)

    @rule(seconds=st.integers(0, 5))
    def hold_all(self, seconds: int) -> None:
        self.window.hold_all(self.now + seconds * SECOND)

    @rule(seconds=st.integers(0, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(gone=st.sets(st.integers(0, 2)))
    def drop(self, gone: set[int]) -> None:
        parted = [self.partitions[number] for number in gone]
        dropped = self.window.drop(parted)
        assert set(dropped) == {one for one in self.inside if one.offsets in parted}
        self.inside -= set(dropped)

    @invariant()
    def counts(self) -> None:
        assert self.window.records == len(self.inside)
        assert self.window.bytes == sum(one.size for one in self.inside)

    def teardown(self) -> None:
        later = self.now + timedelta(days=1)
        assert set(self.window.next(1000, later)) == self.inside
        assert self.window.wakes_at() is None


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
