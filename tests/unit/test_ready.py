"""Which of what is admitted is next, and how much is to be admitted ahead."""

import pytest

from streams.ready import LASTS, MOST, OVERTAKEN_FOR, Ready
from streams.runs import Running
from tests.deliveries import delivery

QUICK, SLOW = 0.000_01, 10.0
"""Seconds between the ends of jobs."""


def one(number: int, *, leads: bool = False) -> Running:
    return Running(delivery(number=number, leads=leads))


def test_who_has_nothing_else_under_way_goes_first_in_the_order_of_admission() -> None:
    ready = Ready()
    flood, first, second = one(1), one(2, leads=True), one(3, leads=True)
    for running in (flood, first, second):
        ready.put(running, 0.0)
    assert [ready.pop(0.0) for _ in range(len(ready))] == [first, second, flood]


def test_what_has_waited_for_long_is_overtaken_no_more() -> None:
    ready = Ready()
    flood, first = one(1), one(2, leads=True)
    ready.put(flood, 0.0)
    ready.put(first, OVERTAKEN_FOR.total_seconds())
    assert ready.pop(OVERTAKEN_FOR.total_seconds() + 0.001) is flood


def test_of_an_organization_none_overtakes_the_first_however_long_it_waits() -> None:
    ready = Ready()
    first, second = one(1, leads=True), one(2)
    ready.put(first, 0.0)
    ready.put(second, 0.001)
    assert [ready.pop(OVERTAKEN_FOR.total_seconds() + 1) for _ in range(2)] == [first, second]


def test_while_nothing_ends_only_free_slots_are_filled() -> None:
    ready = Ready()
    assert ready.wanted(3, QUICK) == 3
    assert ready.wanted(0, QUICK) == 0
    assert ready.room(QUICK) == 0, "the slots may be busy for hours"


@pytest.mark.parametrize(
    ("seconds_per_job", "most"), [(QUICK, MOST), (LASTS.total_seconds() / 7, 7), (SLOW, 0)]
)
def test_no_more_than_a_moments_work_is_ready(seconds_per_job: float, most: int) -> None:
    ready = Ready()
    for _ in range(1000):
        ready.ended()
    assert ready.wanted(0, seconds_per_job) == most
    assert ready.room(seconds_per_job) == 2 * most
    for number in range(most):
        ready.put(one(number), 0.0)
    assert ready.wanted(0, seconds_per_job) == 0
    assert ready.room(seconds_per_job) == most
