"""The forecast finds what a history was made of, and its interval holds as often as it says."""

import math
import random
from collections.abc import Callable
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.ai import Record, analyst, daily_balances, points_csv
from providers.ai.forecast import Forecast, Point, forecast_of
from providers.errors import Refused

START = date(2024, 1, 1)


def history(days: int, flow: Callable[[date], float], opening: float = 10_000.0) -> list[tuple[date, float]]:
    balance, entries = opening, [(START, opening)]
    for index in range(1, days):
        day = START + timedelta(days=index)
        balance += flow(day)
        entries.append((day, balance))
    return entries


def test_a_constant_flow_goes_on() -> None:
    forecast = forecast_of(history(60, lambda day: -50.0), 30)
    assert [point.day for point in forecast.points[:2]] == [date(2024, 3, 1), date(2024, 3, 2)]
    assert forecast.points[-1].balance == pytest.approx(10_000 - 50 * 89)
    assert forecast.points[-1].low == pytest.approx(forecast.points[-1].high, abs=0.01)
    assert (forecast.monthly, forecast.weekly, forecast.daily_trend) == ({}, {}, 0.0)


def test_rent_on_the_first_and_a_weekday_are_found() -> None:
    def flow(day: date) -> float:
        return 100.0 + (-3_000.0 if day.day == 1 else 0.0) + (70.0 if day.weekday() == 4 else 0.0)

    past = history(181, flow)
    forecast = forecast_of(past, 60)
    assert forecast.monthly.keys() == {1}
    assert forecast.monthly[1] == pytest.approx(-3_000, abs=100)
    balance = past[-1][1]
    for point in forecast.points:
        balance += flow(point.day)
        assert point.balance == pytest.approx(balance, abs=250)


def test_a_trend_is_followed_only_when_it_is_certain() -> None:
    certain = forecast_of(history(90, lambda day: (day - START).days * 2.0), 10)
    assert certain.daily_trend == pytest.approx(2.0)
    assert certain.points[0].balance == pytest.approx(10_000 + sum(2 * day for day in range(1, 91)), rel=1e-4)
    chance = random.Random(2)
    assert forecast_of(history(90, lambda day: chance.gauss(0, 100)), 10).daily_trend == 0.0


@pytest.mark.parametrize("ahead", [1, 30, 90])
def test_four_of_five_balances_fall_inside_the_interval(ahead: int) -> None:
    inside = 0
    for seed in range(300):
        chance = random.Random(seed)

        def flow(day: date, chance: random.Random = chance) -> float:
            return (
                20
                + chance.gauss(0, 200)
                + (-2_500 if day.day == 15 else 0)
                + (300 if day.weekday() == 0 else 0)
            )

        whole = history(270, flow)
        point = forecast_of(whole[:180], ahead).points[-1]
        inside += point.low <= whole[179 + ahead][1] <= point.high
    # Four standard errors of a binomial count on either side.
    assert 0.80 - 4 * math.sqrt(0.16 / 300) <= inside / 300 <= 0.80 + 4 * math.sqrt(0.16 / 300)


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.floats(-1e6, 1e6)),
        min_size=2,
        max_size=80,
        unique_by=lambda entry: entry[0],
    ),
    st.integers(1, 366),
)
def test_every_history_long_enough_gives_finite_growing_intervals(
    entries: list[tuple[int, float]], horizon_days: int
) -> None:
    past = [(START + timedelta(days=day), balance) for day, balance in entries]
    last = max(day for day, _ in past)
    if (last - min(day for day, _ in past)).days + 1 < 14:
        with pytest.raises(Refused, match="needs 14 to 3660"):
            forecast_of(past, horizon_days)
        return
    points = forecast_of(past, horizon_days).points
    assert [point.day for point in points] == [last + timedelta(days=n) for n in range(1, horizon_days + 1)]
    assert all(math.isfinite(point.low + point.high) for point in points)
    assert all(point.low <= point.balance <= point.high for point in points)
    widths = [point.high - point.low for point in points]
    assert all(after >= before - 0.02 for before, after in pairwise(widths))


def test_transactions_become_balances_that_end_at_the_closing_one() -> None:
    records = [
        Record(date(2025, 1, 5), -30.0),
        Record(date(2025, 1, 2), 100.0),
        Record(date(2025, 1, 5), 10.0),
    ]
    assert daily_balances(records, 1_080.0) == [
        (date(2025, 1, 1), 1_000.0),
        (date(2025, 1, 2), 1_100.0),
        (date(2025, 1, 5), 1_080.0),
    ]
    assert daily_balances([], 5.0) == []


def test_a_history_that_says_too_little_or_contradicts_itself_is_refused() -> None:
    with pytest.raises(Refused, match="covers 0 days"):
        forecast_of([], 10)
    with pytest.raises(Refused, match="covers 5000 days"):
        forecast_of([(START, 1.0), (START + timedelta(days=4_999), 1.0)], 10)
    with pytest.raises(Refused, match="more than one balance"):
        forecast_of([*history(30, lambda day: 1.0), (START, 7.0)], 10)


def test_shortfall_and_lowest_day_are_named() -> None:
    points = [
        Point(date(2025, 1, day), balance, balance - 50, balance + 50)
        for day, balance in ((1, 100.0), (2, 20.0), (3, 10.0), (4, 90.0))
    ]
    forecast = Forecast(points, 0.0, 0.0, {}, {})
    assert (forecast.lowest.day, forecast.shortfall_day) == (date(2025, 1, 3), date(2025, 1, 2))
    assert points_csv(points).decode().splitlines()[:2] == [
        "date,balance,low,high",
        "2025-01-01,100.00,50.00,150.00",
    ]


def test_findings_warn_of_a_shortfall() -> None:
    _, findings = analyst().predict(history(60, lambda day: -150.0), 30)
    assert findings.sentences[0].startswith("The balance expected on 2024-03-30 is -3,350.00")
    assert "The balance may fall below zero from 2024-03-08 on." in findings.sentences
