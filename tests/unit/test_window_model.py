"""The window against a list of everything."""

from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.delivery import Delivery
from streams.offsets import PartitionOffsets
from tests.deliveries import NOON, delivery
from tests.windows import window

SECOND = timedelta(seconds=1)
ORGANIZATIONS = ("acme", "globex", "initech")


class Machine(RuleBasedStateMachine):
    """Against a list of everything: what is in the window, what was taken out, and what may be taken next.

    Whatever is done, a delivery is in the window, with its reader, or dropped, once. Something is taken whenever
    something may be, in the order of its lane or of its ordering key, of a lane that has used no more than another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = window(slots=2, weights=WEIGHTS.__getitem__)
        self.partitions = [PartitionOffsets("jobs.emails", number) for number in range(3)]
        self.inside: list[Delivery] = []
        """In the order in which unkeyed ones of a priority are taken."""
        self.held: dict[Delivery, datetime] = {}
        self.outside: list[Delivery] = []
        self.ending: list[Delivery] = []
        """Keyed ones that have ended and are not released."""
        self.shut: dict[str, datetime] = {}
        self.blocked: dict[tuple[str, str | None], tuple[datetime, int]] = {}
        self.all_shut: datetime | None = None
        self.now: datetime = NOON
        self.number = 0

    # -- the model --------------------------------------------------------------------------------------

    def may_run(self) -> list[Delivery]:
        """Return what may be taken now: the first of each key, and all that have none."""
        if self.all_shut is not None and self.all_shut > self.now:
            return []
        for one in sorted(self.held, key=lambda held: self.held[held]):
            if self.held[one] <= self.now:
                del self.held[one]
                self.inside.insert(0, one)
        open_lanes = [one for one in self.inside if self.shut.get(one.organization_id, NOON) <= self.now]
        return [one for one in open_lanes if one.ordering_key is None or self.is_first(one)]

    def is_first(self, one: Delivery) -> bool:
        key = one.organization_id, one.ordering_key
        others = [other for other in self.inside if (other.organization_id, other.ordering_key) == key]
        busy = [
            other
            for other in (*self.outside, *self.ending, *self.held)
            if (other.organization_id, other.ordering_key) == key and other not in self.fresh
        ]
        until, rank = self.blocked.get(key, (NOON, -1))
        first = min(other.rank for other in others)
        waits = until > self.now and first >= rank
        return not busy and not waits and one.rank == first

    fresh: frozenset[Delivery] = frozenset()

    # -- what is done with it ---------------------------------------------------------------------------

    @rule(
        organization=st.sampled_from(ORGANIZATIONS),
        partition=st.integers(0, 2),
        size=st.integers(0, 50),
        priority=st.sampled_from([5, 5, 1, 9]),
        key=st.sampled_from([None, None, "k", "l"]),
        back=st.integers(0, 5),
    )
    def add(
        self, organization: str, partition: int, size: int, priority: int, key: str | None, back: int
    ) -> None:
        self.number += 10
        self.partitions[partition].read(self.number)
        rank = self.number - 13 * back if self.number > 13 * back else self.number
        one = delivery(
            organization, self.number, offsets=self.partitions[partition], value=b"x" * size,
            priority=priority, ordering_key=key, headers={"rank": b"%d" % rank},
            created_at=NOON + self.number * SECOND,
        )  # fmt: skip
        self.window.add(one)
        self.inside.append(one)

    @rule(limit=st.integers(0, 10))
    def take(self, limit: int) -> None:
        some = self.window.has_next(self.now)
        assert some == bool(self.may_run())
        taken = self.window.next(limit, self.now)
        assert bool(taken) == (some and limit > 0)
        assert len(taken) <= limit
        for one in taken:
            may_run = [other for other in self.may_run() if other.organization_id == one.organization_id]
            assert one in may_run
            same = [other for other in may_run if other.priority == one.priority]
            if all(other.ordering_key is None for other in may_run):
                assert one is same[0]
                urgency = {
                    other.priority: (other.created_at + 30 * other.priority * SECOND, other.priority)
                    for other in reversed(may_run)
                }
                assert urgency[one.priority] == min(urgency.values())
            self.inside.remove(one)
            self.outside.append(one)
        if len(taken) < limit:
            assert not self.may_run()

    @rule(count=st.integers(0, 5))
    def put_back(self, count: int) -> None:
        back, self.outside = self.outside[:count], self.outside[count:]
        self.window.put_back(back)
        self.inside[:0] = back

    @precondition(lambda self: self.outside)
    @rule(seconds=st.floats(0, 5))
    def end(self, seconds: float) -> None:
        one = self.outside.pop(0)
        self.window.ended(one, seconds)
        if one.ordering_key is not None:
            self.ending.append(one)

    @precondition(lambda self: self.ending)
    @rule()
    def release(self) -> None:
        self.window.released(self.ending.pop(0))

    @precondition(lambda self: self.outside)
    @rule(seconds=st.integers(0, 5))
    def hold(self, seconds: int) -> None:
        one = self.outside.pop()
        self.window.hold(one, self.now + seconds * SECOND)
        self.held[one] = self.now + seconds * SECOND

    @precondition(lambda self: any(one.ordering_key for one in self.outside))
    @rule(seconds=st.integers(1, 5))
    def hold_line(self, seconds: int) -> None:
        one = next(one for one in self.outside if one.ordering_key)
        self.outside.remove(one)
        key = one.organization_id, one.ordering_key
        others = [other.rank for other in self.inside if (other.organization_id, other.ordering_key) == key]
        until = self.now + seconds * SECOND
        self.window.hold_line(one, until)
        self.inside.insert(0, one)
        if all(one.rank < rank for rank in others):
            self.blocked[key] = until, one.rank

    @rule(organization=st.sampled_from(ORGANIZATIONS), seconds=st.integers(0, 5))
    def hold_lane(self, organization: str, seconds: int) -> None:
        until = self.now + seconds * SECOND
        self.window.hold_lane(organization, until)
        self.shut[organization] = max(until, self.shut.get(organization, until))

    @rule(seconds=st.integers(0, 5))
    def hold_all(self, seconds: int) -> None:
        until = self.now + seconds * SECOND
        self.window.hold_all(until)
        self.all_shut = max(until, self.all_shut or until)

    @rule(seconds=st.integers(0, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @rule(gone=st.sets(st.integers(0, 2)))
    def drop(self, gone: set[int]) -> None:
        parted = [self.partitions[number] for number in gone]
        dropped = self.window.drop(parted)
        expected = [one for one in (*self.inside, *self.held) if one.offsets in parted]
        assert set(dropped) == set(expected)
        assert len(dropped) == len(expected)
        self.inside = [one for one in self.inside if one.offsets not in parted]
        self.held = {one: until for one, until in self.held.items() if one.offsets not in parted}

    @rule(number=st.integers(0, 2), far=st.booleans())
    def make_way(self, number: int, far: bool) -> None:
        here = [self.partitions[number]]
        for one, due in self.window.step_aside(here, here if far else [], self.now):
            assert one.offsets in here
            assert due >= self.now + SECOND
            self.inside.remove(one)
            if one.ordering_key is not None:
                self.ending.append(one)

    @invariant()
    def counts(self) -> None:
        inside = [*self.inside, *self.held]
        assert self.window.records == len(inside)
        assert self.window.bytes == sum(len(one.value) for one in inside)
        assert sum(lane.records for lane in self.window._lanes.values()) == len(inside)

    def teardown(self) -> None:
        later = self.now + timedelta(days=1)
        left = {*self.inside, *self.held}
        assert self.window.has_next(later) or not left or self.ending or self.outside
        while self.ending or self.outside or left:
            while self.ending:
                self.window.released(self.ending.pop())
            for one in self.outside:
                self.window.ended(one, 0.01)
                self.window.released(one)
            self.outside = self.window.next(1000, later)
            assert set(self.outside) <= left
            assert self.outside or not left
            left -= set(self.outside)
        assert self.window.wakes_at() is None
        assert not self.window._lines
        assert self.window.records == 0


WEIGHTS = {"acme": 1.0, "globex": 2.0, "initech": 0.5}

TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40)
