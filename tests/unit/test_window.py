"""Which record is next: in turn, bounded, and none lost on the way."""

from collections import defaultdict
from datetime import timedelta
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.delivery import Delivery
from tests.deliveries import NOON, delivery
from tests.windows import fill, ids, window

SECOND = timedelta(seconds=1)
ORGANIZATIONS = ("acme", "globex", "initech")


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
    @settings(max_examples=30)
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
@settings(max_examples=60)
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
    assert len(full.turns._heap) <= 100
    assert len(full.turns._idle) <= 1001
