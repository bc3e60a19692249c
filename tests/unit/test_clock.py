"""A machine whose clock is wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from streams.clock import Clock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("wrong_by", [timedelta(hours=1), timedelta(hours=-1), 3 * SECOND])
async def test_it_follows_the_clock_that_counts(wrong_by: timedelta) -> None:
    clock = Clock(lambda: NOON + wrong_by)

    async def ask() -> datetime:
        return NOON

    assert clock() == NOON + wrong_by
    assert await clock.follow(ask) == wrong_by
    assert clock() == NOON


@pytest.mark.parametrize("wrong_by", [timedelta(0), 0.9 * SECOND, -0.9 * SECOND])
async def test_what_clocks_differ_by_every_day_changes_nothing(wrong_by: timedelta) -> None:
    clock = Clock(lambda: NOON + wrong_by)

    async def ask() -> datetime:
        return NOON

    assert await clock.follow(ask) == timedelta(0)
    assert clock() == NOON + wrong_by


async def test_a_slow_answer_proves_little() -> None:
    own = NOON

    async def ask() -> datetime:
        nonlocal own
        own += 4 * SECOND
        return NOON

    assert await Clock(lambda: own).follow(ask) == timedelta(0), "it may have been right 4 s ago"


async def test_a_clock_that_was_set_right_is_itself_again() -> None:
    wrong_by = timedelta(hours=1)
    clock = Clock(lambda: NOON + wrong_by)

    async def ask() -> datetime:
        return NOON

    await clock.follow(ask)
    wrong_by = timedelta(0)
    await clock.follow(ask)
    assert clock() == NOON
