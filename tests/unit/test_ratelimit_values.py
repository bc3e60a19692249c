"""What is refused when it is stated, and how a batch is packed."""

from datetime import UTC, datetime, timedelta

import pytest

from ratelimit import Candidate, Done, Limit, Mark, Run, fence, identity
from ratelimit.admission import Plans, check_limits
from ratelimit.model import ModelAdmission
from ratelimit.redis import DOUBTED_MAX, RedisAdmission

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("count", "per", "burst", "sentence"),
    [
        (0, HOUR, None, "limit 'emails' allows 0 each 1:00:00; both must be above zero"),
        (1, timedelta(0), None, "allows 1 each 0:00:00"),
        (1, HOUR, 0, "has a burst of 0; it must be at least 1"),
        (1, timedelta(days=365), 11, "more than 3650 days to refill its burst"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    count: int, per: timedelta, burst: int | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Limit("emails", count, per, burst)


@pytest.mark.parametrize(
    ("count", "per", "interval_us"),
    [
        (100, timedelta(minutes=1), 600_000),
        (3, timedelta(seconds=1), 333_334),
        (30_000, timedelta(seconds=1), 34),
        (9_000_000, timedelta(seconds=1), 1),
    ],
)
def test_an_interval_is_rounded_up(count: int, per: timedelta, interval_us: int) -> None:
    assert Limit("emails", count, per).interval_us == interval_us


def test_limits_with_the_same_numbers_are_equal() -> None:
    assert Limit("emails", 5, HOUR) == Limit("emails", 5, HOUR)
    assert len({Limit("emails", 5, HOUR), Limit("emails", 5, HOUR), Limit("emails", 6, HOUR)}) == 2


def test_no_two_organizations_share_an_identity() -> None:
    pairs = [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("a", "b"), ("", "a:b"), ("%", ":"), ("%25", ":")]
    assert len({identity(*pair) for pair in pairs}) == len(pairs)
    assert identity("acme", "0190-7c1a") == "acme:0190-7c1a"


def test_a_fence_without_a_replay_sorts_below_one_with_any() -> None:
    dead = fence("", 999_999, 999_999) + "~"
    assert dead < fence("00000000-0000-7000-8000-000000000000", 1, 0)


def test_each_limit_of_a_batch_is_sent_once() -> None:
    queue, acme, globex = (Limit(name, 5, HOUR) for name in ("queue", "acme", "globex"))
    plans, mine = Plans(), (queue, acme)
    codes = [
        plans.code(limits, cost) for limits, cost in [(mine, 1), (mine, 2), ((queue, globex), 1), ((), 1)]
    ]
    assert codes == ["1:1,2", "2:1,2", "1:1,3", ""]
    assert plans.limits == [queue, acme, globex]


@pytest.mark.parametrize("cost", [0, -1, 6])
def test_a_cost_that_never_fits_is_refused(cost: int) -> None:
    with pytest.raises(ValueError, match=f"a job costs {cost}"):
        check_limits((Limit("queue", 5, HOUR),), cost)


@pytest.mark.parametrize(("lease", "marker"), [(HOUR, HOUR), (timedelta(0), HOUR), (2 * HOUR, HOUR)])
def test_a_marker_must_outlive_a_lease(lease: timedelta, marker: timedelta) -> None:
    with pytest.raises(ValueError, match=r"the marker retention .* must exceed the lease"):
        ModelAdmission(lease=lease, marker=marker)
    with pytest.raises(ValueError, match=r"the marker retention .* must exceed the lease"):
        RedisAdmission.from_url("redis://127.0.0.1:1", lease=lease, marker=marker)


async def test_the_model_forgets_a_job_when_its_marker_ends() -> None:
    now = datetime(2026, 4, 15, tzinfo=UTC)
    admission = ModelAdmission(clock=lambda: now)
    [run] = await admission.admit([Candidate("acme:1", "")])
    assert isinstance(run, Run)
    await admission.settle([Mark("acme:1", run.token, Done())])
    now += timedelta(days=7) - timedelta(microseconds=1)
    assert await admission.completed(["acme:1"]) == [True]
    now += timedelta(microseconds=1)
    assert await admission.completed(["acme:1"]) == [False]
    assert isinstance((await admission.admit([Candidate("acme:1", "")]))[0], Run)


async def test_the_batches_in_doubt_are_bounded() -> None:
    admission = RedisAdmission.from_url("redis://127.0.0.1:1")
    for number in range(DOUBTED_MAX + 5):
        admission._doubt(f"token{number}")
    doubts = admission._doubts().split()
    assert len(doubts) == DOUBTED_MAX
    assert doubts[-1] == f"token{DOUBTED_MAX + 4}"
    await admission.close()
