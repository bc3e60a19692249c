"""Many processes on the same limits: none is exceeded in any window, and what one refuses costs the others nothing."""

import pytest

import devstack
from bench.limits import AT_ONCE, PLACES, QUEUE, SECOND, Grant, bench, most_at_once, overshoot
from ratelimit import Limit


@pytest.mark.stack
def test_eight_processes_exceed_no_limit(stack: devstack.Stack) -> None:
    found = bench(stack.redis, seconds=8, processes=8)
    over, most, share = found["overshoot"], found["most_at_once"], found["of_rate_percent"]
    assert isinstance(over, dict)
    assert isinstance(most, dict)
    assert isinstance(share, dict)
    assert max(over.values()) <= 0, found
    assert most["queue"] <= AT_ONCE.most, found
    assert all(most[name] <= limit.most for name, limit in PLACES.items()), found
    assert share["globex"] > 90, "its limit, not the test, must hold it back"
    assert share["queue"] > 50, "what globex was refused must not be spent"
    assert found["refused"], found


@pytest.mark.parametrize(("interval_ms", "worst"), [(10, -0.1), (9, 1.7), (12, -0.1)])
def test_overshoot_is_found_in_the_worst_window(interval_ms: int, worst: float) -> None:
    limit = Limit("rate", 100, SECOND, burst=5)
    taken = [0] * 5 + [interval_ms * number for number in range(1, 19)] + [5_000, 5_000]
    assert overshoot(limit, taken) == pytest.approx(worst, abs=0.001)
    assert overshoot(limit, [*taken, 5_000, 5_000, 5_000, 5_001]) == pytest.approx(max(worst, 0.8), abs=0.001)


def test_who_holds_a_place_is_counted_between_answer_and_settling() -> None:
    held = [Grant("acme", 0, since, until) for since, until in ((0, 2), (1, 3), (2, 4), (3.5, 5))]
    assert most_at_once(held) == 2
    assert most_at_once([]) == 0
    assert QUEUE.capacity == 20
