"""What of an organization with more than its share is skipped, and what makes way for others."""

import tracemalloc
from datetime import timedelta
from typing import Any

from streams.offsets import PartitionOffsets
from streams.window import Window
from tests.deliveries import NOON, delivery
from tests.windows import fill, ids, window

SECOND = timedelta(seconds=1)


class TestSurplus:
    def fed(self, seconds_each: float = 0.1, **options: Any) -> Window:
        """Return a window that knows what a job takes."""
        full = window(**options)
        for number in range(200):
            full.add(delivery("acme", number))
            (one,) = full.next(1, NOON)
            full.ended(one, seconds_each)
        return full

    def offered(self, full: Window, *numbers: int, organization: str = "acme", **facts: Any) -> list[bool]:
        """Return which of so many records of one partition come into the window; the others are skipped."""
        offsets = self.partitions.setdefault(id(full), PartitionOffsets("jobs.emails", 0))
        for number in numbers:
            offsets.read(number)
        return [full.offer(delivery(organization, number, offsets=offsets, **facts)) for number in numbers]

    def setup_method(self) -> None:
        self.partitions: dict[int, PartitionOffsets] = {}

    def test_an_organization_holds_no_more_than_is_free(self) -> None:
        full = self.fed(records=100)
        assert self.offered(full, *range(200)) == [True] * 50 + [False] * 150
        assert not full.full
        assert len(full.surplus) == 150
        assert self.offered(full, 200, organization="globex") == [True]

    def test_a_weight_of_three_holds_three_quarters(self) -> None:
        full = self.fed(records=100, weights=lambda organization: 3.0)
        assert sum(self.offered(full, *range(200))) == 75

    def test_large_records_count_by_their_bytes(self) -> None:
        full = self.fed(seconds_each=3.0, size_bytes=1000)
        assert sum(self.offered(full, *range(20), value=b"x" * 100)) == 5
        assert full.surplus.low() is None, "what is read back has no room either"
        full.next(3, NOON)
        assert full.surplus.low() is not None

    def test_work_for_less_than_half_a_second_is_never_skipped(self) -> None:
        full = self.fed(seconds_each=0.000_05, records=100, slots=1)
        assert all(self.offered(full, *range(200)))
        assert full.full

    def test_what_a_limit_holds_back_is_skipped_however_quick_it_is(self) -> None:
        full = self.fed(seconds_each=0.000_05, records=100, slots=1)
        full.hold_lane("acme", NOON + SECOND, pause=0.1 * SECOND)
        assert sum(self.offered(full, *range(200))) == 50

    def test_what_is_more_urgent_than_all_that_waits_is_kept_unless_it_has_an_order(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(60), priority=5)
        assert self.offered(full, 60, priority=4, ordering_key="k") == [False]
        assert self.offered(full, 61, priority=4) == [False], "as urgent as one that is skipped"
        assert self.offered(full, 62, 63, priority=3) == [True, False]

    def test_what_others_of_its_ordering_key_wait_for_is_kept(self) -> None:
        full = self.fed(records=100)
        kept = self.offered(full, *range(100, 160), ordering_key="k").count(True)
        assert kept == 50
        rank = {"rank": b"99"}
        assert self.offered(full, 160, ordering_key="k", headers=rank) == [True]
        assert self.offered(full, 161, ordering_key="other", headers=rank) == [True], (
            "it comes before all that is skipped"
        )
        assert self.offered(full, 162, ordering_key="other", headers={"rank": b"150"}) == [False]

    def test_once_something_is_skipped_all_that_comes_later_is_until_it_is_read_back(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(60))
        full.next(50, NOON)
        assert self.offered(full, 60) == [False]
        low = full.surplus.low()
        assert low is not None
        lane, offsets, places = low
        assert list(places) == [*range(50, 61)]
        full.surplus.taken_back(lane, offsets, len(places))
        assert self.offered(full, 61) == [True]
        assert not full.surplus.lanes

    def test_it_is_low_below_half_of_its_share_and_filled_up_to_it(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(200))
        full.next(25, NOON)
        assert full.surplus.low() is None
        full.next(1, NOON)
        low = full.surplus.low()
        assert low is not None
        assert list(low[2]) == [*range(50, 76)]

    def test_what_is_read_back_at_once_lies_together(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(50), *range(1000, 5000, 100))
        full.next(50, NOON)
        low = full.surplus.low()
        assert low is not None
        assert list(low[2]) == [1000, 1100, 1200, 1300, 1400]

    def test_it_is_low_when_all_that_it_holds_waits_for_others(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(50), ordering_key="k")
        self.offered(full, *range(50, 70))
        full.next(1, NOON)
        assert full.surplus.low() is not None
        assert not full.surplus.is_choked
        self.offered(full, 90, ordering_key="k", headers={"rank": b"1"})
        assert full.surplus.low() is None
        assert full.surplus.is_choked

    def test_of_a_choked_lane_what_waits_for_one_elsewhere_steps_aside(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(51), ordering_key="k")
        (first,) = full.next(1, NOON)
        full.hold_line(first, NOON + 5 * SECOND)
        assert full.surplus.is_choked
        aside = full.step_aside([], [], NOON)
        assert {one.offset for one, _ in aside} == {*range(50)}
        assert all(due >= NOON + 5 * SECOND for _, due in aside)
        assert full.surplus.low() is not None

    def test_what_is_skipped_of_a_partition_that_goes_is_forgotten_with_it(self) -> None:
        full = self.fed(records=100)
        self.offered(full, *range(200))
        (offsets,) = self.partitions.values()
        assert len(full.drop([offsets])) == 50
        assert not full.surplus.lanes
        assert "acme" not in full._lanes or full._lanes["acme"].skipped is None

    def test_a_hundred_thousand_take_little_memory(self) -> None:
        full = self.fed(records=100)
        offsets = PartitionOffsets("jobs.emails", 0)
        one = delivery("acme", offsets=offsets)
        tracemalloc.start()
        try:
            for number in range(100_000):
                offsets.read(number)
                one.offset = number
                full.offer(one)
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(full.surplus) == 99_950
        assert taken < 4_000_000

    def test_two_deliveries_of_a_job_wait_together_for_what_is_ahead_of_it(self) -> None:
        full = window()
        for number in (1, 2):
            full.add(delivery("acme", number, ordering_key="k", headers={"rank": b"1"}))
        (first,) = full.next(10, NOON)
        full.hold_line(first, NOON + SECOND)
        assert not full.has_next(NOON)
        assert len(full.next(10, NOON + SECOND)) == 1

    def test_without_lanes_nothing_is_surplus_and_the_first_come_is_the_first_served(self) -> None:
        full = self.fed(records=100, fair=False)
        for number in range(150):
            assert full.offer(delivery("acme" if number < 140 else "globex", number))
        assert [one.offset for one in full.next(150, NOON)] == list(range(150))


class TestMakingWay:
    def read(self, number: int, partition: int = 0) -> PartitionOffsets:
        """Return the offsets of a partition of which so many records were read."""
        offsets = PartitionOffsets("jobs.emails", partition)
        for offset in range(number):
            offsets.read(offset)
        return offsets

    def test_what_is_held_goes_and_what_may_run_stays(self) -> None:
        full, here, there = window(), self.read(10), self.read(10, 1)
        for number in range(4):
            full.add(delivery("acme", number, offsets=here if number % 2 else there))
            full.add(delivery("globex", number, offsets=here))
        full.hold_lane("acme", NOON + 5 * SECOND)
        aside = full.step_aside([here], [], NOON)
        assert ids([one for one, _ in aside]) == ["acme-1", "acme-3"]
        assert all(due >= NOON + 5 * SECOND for _, due in aside)
        assert full.step_aside([here], [], NOON) == []
        assert ids(full.next(10, NOON)) == ["globex-0", "globex-1", "globex-2", "globex-3"]
        assert ids(full.next(10, NOON + 5 * SECOND)) == ["acme-0", "acme-2"]

    def test_far_behind_the_older_half_of_what_has_more_than_its_share_goes_too(self) -> None:
        full, here = window(records=40), self.read(30)
        fill(full, initech=2)
        for number in range(20):
            full.add(delivery("acme", number, offsets=here))
        full.add(delivery("globex", 0, offsets=here))
        assert full.step_aside([here], [], NOON) == []
        assert [one.offset for one, _ in full.step_aside([here], [here], NOON)] == list(range(15))
        assert ids(full.next(4, NOON)) == ["initech-0", "acme-15", "globex-0", "initech-1"]
