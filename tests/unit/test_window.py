"""Which record is next: in turn, bounded, and none lost on the way."""

from collections import defaultdict
from datetime import datetime, timedelta
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.delivery import SURPLUS, Delivery
from streams.offsets import PartitionOffsets
from streams.turns import OVERHEAD_SECONDS
from streams.window import Window
from tests.deliveries import NOON, delivery

SECOND = timedelta(seconds=1)
ORGANIZATIONS = ("acme", "globex", "initech")


def window(records: int = 1000, size_bytes: int = 1_000_000, **options: Any) -> Window:
    return Window(records=records, size_bytes=size_bytes, **options)


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


def test_what_ran_for_long_counts_for_long() -> None:
    full = window()
    fill(full, acme=50, globex=50)
    ran: list[str] = []
    for _ in range(24):
        (one,) = full.next(1, NOON)
        ran.append(one.organization_id)
        full.ended(one, 5.0 if one.organization_id == "acme" else 1.0)
    assert 3 <= ran.count("acme") <= 5


def test_an_organization_that_was_idle_has_saved_nothing() -> None:
    full = window()
    fill(full, acme=60)
    for one in full.next(40, NOON):
        full.ended(one, 1.0)
    fill(full, globex=60)
    ran = [one.organization_id for one in full.next(20, NOON)]
    assert 9 <= ran.count("globex") <= 11


def test_an_organization_that_was_held_has_saved_nothing() -> None:
    full = window()
    fill(full, acme=100, globex=100)
    full.hold_lane("globex", NOON + SECOND)
    for one in full.next(40, NOON):
        full.ended(one, 1.0)
    ran = [one.organization_id for one in full.next(20, NOON + SECOND)]
    assert 9 <= ran.count("globex") <= 11


def test_empty_and_filled_again_an_organization_still_owes_what_it_used() -> None:
    full = window()
    fill(full, globex=60, acme=1)
    ran: list[str] = []
    for number in range(1, 41):
        (one,) = full.next(1, NOON)
        ran.append(one.organization_id)
        full.ended(one, 3.0 if one.organization_id == "acme" else 1.0)
        if one.organization_id == "acme":
            full.add(delivery("acme", number))
    assert 8 <= ran.count("acme") <= 12


class TestPriority:
    def test_the_most_urgent_of_an_organization_is_first(self) -> None:
        full = window()
        for number, priority in enumerate((5, 10, 1, 5, 2)):
            full.add(delivery("acme", number, priority=priority))
        assert ids(full.next(5, NOON)) == ["acme-2", "acme-4", "acme-0", "acme-3", "acme-1"]

    def test_urgency_takes_nothing_from_another_organization(self) -> None:
        full = window()
        for number in range(4):
            full.add(delivery("acme", number, priority=1))
            full.add(delivery("globex", number, priority=10))
        ran = [one.organization_id for one in full.next(8, NOON)]
        assert all({*ran[at : at + 2]} == {"acme", "globex"} for at in range(0, 8, 2))

    def test_thirty_seconds_of_waiting_are_worth_one_step(self) -> None:
        full = window()
        full.add(delivery("acme", 0, priority=10))
        full.add(delivery("acme", 1, priority=1, created_at=NOON + 269 * SECOND))
        full.add(delivery("acme", 2, priority=1, created_at=NOON + 271 * SECOND))
        assert ids(full.next(3, NOON)) == ["acme-1", "acme-0", "acme-2"]

    @given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 1000)), min_size=1, max_size=40))
    def test_nothing_is_overtaken_by_what_came_nine_steps_later(self, jobs: list[tuple[int, int]]) -> None:
        full = window()
        at = 0
        for number, (priority, gap) in enumerate(jobs):
            at += gap
            full.add(delivery("acme", number, priority=priority, created_at=NOON + at * SECOND))
        order = full.next(100, NOON)
        for place, one in enumerate(order):
            for earlier in order[:place]:
                assert earlier.created_at <= one.created_at + 9 * 30 * SECOND


class TestWeights:
    @given(
        st.lists(st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 300)), min_size=2, max_size=5),
        st.integers(1, 6),
        st.integers(0, 1000),
    )
    @settings(max_examples=30, deadline=None)
    def test_shares_of_measured_seconds_follow_the_weights(
        self, organizations: list[tuple[float, int]], slots: int, seed: int
    ) -> None:
        """What two backlogged organizations have used, by their weights, differs by what a few jobs take."""
        names = {f"org-{n}": weight for n, (weight, _) in enumerate(organizations)}
        longest = {f"org-{n}": most / 100 for n, (_, most) in enumerate(organizations)}
        full = window(records=10_000, slots=slots, weights=names.__getitem__)
        fill(full, **dict.fromkeys(names, 400))
        used: dict[str, float] = dict.fromkeys(names, 0.0)
        running: list[tuple[float, float, int, Delivery]] = []
        random = Random(seed)
        now, number = 0.0, 0
        while now < 60 and all(full._lanes[name].records > 20 for name in names):
            for one in full.next(slots - len(running), NOON):
                seconds = random.uniform(0.1, 1.0) * longest[one.organization_id]
                running.append((now + seconds, seconds, number, one))
                number += 1
            now, seconds, _, one = running.pop(running.index(min(running)))
            full.ended(one, seconds)
            used[one.organization_id] += seconds
        shares = [used[name] / weight for name, weight in names.items()]
        assert max(shares) - min(shares) <= (slots + 2) * max(longest.values()) + 0.1

    def test_a_weight_may_change_while_jobs_wait(self) -> None:
        weights: defaultdict[str, float] = defaultdict(lambda: 1.0)
        full = window(weights=weights.__getitem__)
        fill(full, acme=400, globex=400)
        for one in full.next(20, NOON):
            full.ended(one, 1.0)
        weights["acme"] = 3.0
        full.weigh()
        ran: list[str] = []
        for _ in range(100):
            (one,) = full.next(1, NOON)
            full.ended(one, 1.0)
            ran.append(one.organization_id)
        assert 72 <= ran.count("acme") <= 78


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 5)), max_size=25),
    st.integers(1, 4),
    st.integers(1, 100),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_a_quiet_organization_waits_for_one_job_of_each_other_organization(
    arrivals: list[tuple[int, int]], slots: int, most_ms: int, seed: int
) -> None:
    """The stated bound, in virtual time: beside a flood that keeps every slot busy.

    A job of an organization that has none waiting or running starts after at most one of each other organization
    that waits, each of which takes a slot for the longest that a job runs.
    """
    full = window(records=100_000, size_bytes=1 << 30, slots=slots)
    fill(full, flood=50)
    random = Random(seed)
    running: list[tuple[int, int, Delivery]] = []
    coming = sorted(arrivals)
    waiting: dict[str, tuple[int, set[str]]] = {}
    busy: set[str] = set()
    now = number = 0
    while coming or waiting:
        while coming and coming[0][0] <= now:
            _, which = coming.pop(0)
            name = f"quiet-{which}"
            if name in busy:
                continue
            busy.add(name)
            for _, beside in waiting.values():
                beside.add(name)
            waiting[name] = now, {"flood", *waiting}
            full.add(delivery(name, number))
            number += 1
        for one in full.next(slots - len(running), NOON):
            name = one.organization_id
            if name == "flood":
                full.add(delivery("flood", number))
            else:
                since, beside = waiting.pop(name)
                assert now - since <= (len(beside) // slots + 1) * most_ms
            number += 1
            running.append((now + random.randint(1, most_ms), number, one))
        now, _, one = running.pop(running.index(min(running)))
        full.ended(one, 0.001 * most_ms)
        busy.discard(one.organization_id)


class TestSurplus:
    def fed(self, seconds_each: float = 0.1, **options: Any) -> Window:
        """Return a window that knows what a job takes."""
        full = window(**options)
        for number in range(200):
            full.add(delivery("acme", number))
            (one,) = full.next(1, NOON)
            full.ended(one, seconds_each)
        return full

    def test_an_organization_holds_no_more_than_is_free(self) -> None:
        full = self.fed(records=100)
        kept = [full.offer(delivery("acme", number), NOON) is None for number in range(200)]
        assert kept == [True] * 50 + [False] * 150
        assert not full.full
        assert full.offer(delivery("globex"), NOON) is None

    def test_a_weight_of_three_holds_three_quarters(self) -> None:
        full = self.fed(records=100, weights=lambda organization: 3.0)
        assert sum(full.offer(delivery("acme", number), NOON) is None for number in range(200)) == 75

    def test_large_records_count_by_their_bytes(self) -> None:
        full = self.fed(seconds_each=3.0, size_bytes=1000)
        offered = [full.offer(delivery("acme", number, value=b"x" * 100), NOON) for number in range(20)]
        assert sum(due is None for due in offered) == 5

    def test_work_for_less_than_two_seconds_is_never_put_aside(self) -> None:
        full = self.fed(seconds_each=0.000_05, records=100, slots=1)
        assert all(full.offer(delivery("acme", number), NOON) is None for number in range(200))
        assert full.full

    def test_what_a_limit_holds_back_is_put_aside_however_quick_it_is(self) -> None:
        full = self.fed(seconds_each=0.000_05, records=100, slots=1)
        full.hold_lane("acme", NOON + SECOND, pause=0.1 * SECOND)
        assert sum(full.offer(delivery("acme", number), NOON) is None for number in range(200)) == 50

    def test_what_is_more_urgent_than_all_that_waits_is_kept(self) -> None:
        full = self.fed(records=100)
        while full.offer(delivery("acme", priority=5), NOON) is None:
            continue
        assert full.offer(delivery("acme", priority=4), NOON) is None
        assert full.offer(delivery("acme", priority=4), NOON) is not None

    def test_what_others_of_its_ordering_key_wait_for_is_kept(self) -> None:
        full = self.fed(records=100)
        number = 100
        while full.offer(delivery("acme", number, ordering_key="k"), NOON) is None:
            number += 1
        assert full.offer(delivery("acme", 99, ordering_key="k"), NOON) is None
        assert full.offer(delivery("acme", number, ordering_key="k"), NOON) is not None
        assert full.offer(delivery("acme", 98, ordering_key="other"), NOON) is not None

    def test_two_deliveries_of_a_job_wait_together_for_what_is_ahead_of_it(self) -> None:
        full = window()
        for number in (1, 2):
            full.add(delivery("acme", number, ordering_key="k", headers={"rank": b"1"}))
        (first,) = full.next(10, NOON)
        full.hold_line(first, NOON + SECOND)
        assert not full.has_next(NOON)
        assert len(full.next(10, NOON + SECOND)) == 1

    def test_it_comes_back_about_twice_as_fast_as_it_is_served(self) -> None:
        full = self.fed(seconds_each=0.1 - OVERHEAD_SECONDS, records=100, slots=2)
        while (first := full.offer(delivery("acme"), NOON)) is None:
            continue
        dues = [first, *filter(None, (full.offer(delivery("acme"), NOON) for _ in range(40_000)))]
        assert dues == sorted(dues)
        for number, due in enumerate(dues, 1):
            away, wanted = (due - NOON).total_seconds(), min(number * 0.025, 600.3)
            assert wanted / 3 <= away <= max(wanted * 1.01, 1.3)

    def test_what_is_back_is_away_no_more(self) -> None:
        full = self.fed(records=100, slots=2)
        while full.offer(delivery("acme"), NOON) is None:
            continue
        back = {"reason": SURPLUS.encode()}
        for _ in range(1000):
            due = full.offer(delivery("acme", headers=back), NOON)
            assert due is not None
            assert due < NOON + 2 * SECOND
        assert full._lanes["acme"].away == 1

    def test_of_several_floods_each_comes_back_by_its_share(self) -> None:
        weights = {"acme": 3.0, "globex": 1.0}
        full = self.fed(seconds_each=0.1, records=1000, slots=2, weights=weights.__getitem__)
        away: dict[str, float] = {}
        for _ in range(2000):
            for organization in weights:
                if due := full.offer(delivery(organization), NOON):
                    away[organization] = (due - NOON).total_seconds()
        assert full._flooding == 4.0
        assert away == {"acme": 30.3, "globex": 120.3}

    def test_without_lanes_nothing_is_surplus_and_the_first_come_is_the_first_served(self) -> None:
        full = self.fed(records=100, fair=False)
        for number in range(150):
            assert full.offer(delivery("acme" if number < 140 else "globex", number), NOON) is None
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


def test_ten_thousand_organizations_leave_nothing_behind() -> None:
    full = window(records=1000)
    fill(full, flood=500)
    for number in range(10_000):
        full.add(delivery(f"org-{number}", number))
        full.add(delivery("flood", number))
        for one in full.next(2, NOON):
            full.ended(one, 0.01)
    while taken := full.next(100, NOON):
        for one in taken:
            full.ended(one, 0.01)
    assert full.records == full.bytes == 0
    assert len(full._lanes) <= 1001
    assert len(full._turns._heap) <= 100
    assert len(full._turns._idle) <= 1001


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
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
