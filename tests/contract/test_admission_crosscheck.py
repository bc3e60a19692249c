"""The arithmetic of rates against that of another implementation: the moving window of the `limits` package.

The two are not the same rule. A moving window of N each T lets N in at once and then none until T has passed; GCRA
hands the same N out evenly, after its burst. What can be compared is what both must keep:

- No window of T holds more than the stated bound, rate x T + burst: whatever GCRA lets in, a moving window of that
  size lets in, too; and GCRA does let in so many.
- Under a load that never ends, both have let in the same number whenever a whole number of T has passed.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import limits.storage.memory
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ratelimit import Candidate, Limit, Run
from ratelimit.model import ModelAdmission

SECOND = timedelta(seconds=1)
NOON = datetime(2026, 4, 15, 12, tzinfo=UTC)


class Time:
    """The clock of both, in whole microseconds from an origin."""

    now_us = 0

    def seconds(self) -> float:
        return self.now_us / 1_000_000

    def instant(self) -> datetime:
        return NOON + timedelta(microseconds=self.now_us)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(limits.storage.memory, "time", SimpleNamespace(time=clock.seconds))
    return clock


class Ours:
    """GCRA, as the model has it; the contract suite and the property test hold Redis to the same answers."""

    def __init__(self, clock: Time, limit: Limit) -> None:
        self._admission = ModelAdmission(clock=clock.instant)
        self._limits = (limit,)
        self._asked = 0

    def lets_in(self, cost: int = 1) -> bool:
        self._asked += 1
        asking = self._admission.admit([Candidate(f"acme:{self._asked}", "", self._limits, cost)])
        return isinstance(asyncio.run(asking)[0], Run)


class Theirs:
    """A moving window of so many each second."""

    def __init__(self, amount: int) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerSecond(amount)

    def lets_in(self, cost: int = 1) -> bool:
        return self._limiter.hit(self._item, "acme", cost=cost)


@given(
    count=st.integers(1, 12),
    burst=st.integers(1, 12),
    arrivals=st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 3)), min_size=5, max_size=80),
)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_moving_window_of_the_stated_bound_lets_in_all_that_gcra_does(
    clock: Time, count: int, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    ours, theirs = Ours(clock, Limit("rate", count, SECOND, burst)), Theirs(count + burst)
    clock.now_us = 10_000_000
    for wait_us, cost in arrivals:
        clock.now_us += wait_us
        if cost <= burst and ours.lets_in(cost):
            assert theirs.lets_in(cost), "more in one window than rate x window + burst"


@pytest.mark.parametrize(("count", "burst"), [(10, 1), (10, 10), (4, 7)])
def test_the_bound_is_reached(clock: Time, count: int, burst: int) -> None:
    ours, smaller = Ours(clock, Limit("rate", count, SECOND, burst)), Theirs(count + burst - 1)
    admitted = refused = 0
    for _ in range(1_001):
        while ours.lets_in():
            admitted += 1
            refused += not smaller.lets_in()
        clock.now_us += 1_000
    assert admitted == count + burst
    assert refused == 1, "the last one of the window is one too many for the smaller"


@pytest.mark.parametrize("count", [1, 8, 25])
def test_both_let_in_the_same_number_whenever_the_time_has_passed(clock: Time, count: int) -> None:
    ours, theirs = Ours(clock, Limit("rate", count, SECOND)), Theirs(count)
    mine = others = 0
    for passed_ms in range(4 * 1_001 + 1):
        clock.now_us = passed_ms * 1_000
        while ours.lets_in():
            mine += 1
        while theirs.lets_in():
            others += 1
        # Their window is closed at both ends, so each round of theirs begins a millisecond later.
        rounds, rest = divmod(passed_ms, 1_001)
        if rest == 0:
            assert mine == others == count * (rounds + 1)
