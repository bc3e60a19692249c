"""Predict daily balances from past ones.

The daily flow (the change of the balance from one day to the next) is taken as a sum of

- a level, and a linear trend by least squares, kept only if it is more than twice its standard error;
- flows that recur on a day of the month (rent, payroll): the median of that day over at least three months, kept
  if it stands out from the usual day by more than three robust standard deviations;
- the effect of the weekday, kept where it is more than twice its standard error;
- noise, taken as independent from day to day.

The interval follows from the noise that is left and from how well the level and the trend are known. It knows
nothing of one-off payments to come, and is too narrow where noise has a memory.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from statistics import fmean, median

from providers.ai.analysis import robust_scale
from providers.ai.transactions import Record
from providers.errors import Refused

FEWEST_DAYS = 14
MOST_DAYS = 3_660
FEWEST_MONTHS, FEWEST_WEEKS = 3, 4
Z_80_PERCENT = 1.2816
"""The normal quantile of 0.9: ten percent on either side."""


@dataclass(frozen=True, slots=True)
class Point:
    """The balance expected at the end of a day, with its 80 % interval."""

    day: date
    balance: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """The points of a forecast, and the parts of the flow that it found."""

    points: list[Point]
    daily_level: float
    """The flow of a usual day at the end of the history."""
    daily_trend: float
    """How much that flow changes a day; 0 when no trend is certain."""
    monthly: dict[int, float]
    """Day of the month to what recurs on it."""
    weekly: dict[int, float]
    """Weekday, Monday = 0, to its effect."""

    @property
    def lowest(self) -> Point:
        """Return the point with the lowest expected balance."""
        return min(self.points, key=lambda point: point.balance)

    @property
    def shortfall_day(self) -> date | None:
        """Return the first day on which the balance may be below zero."""
        return next((point.day for point in self.points if point.low < 0), None)


def daily_balances(records: Sequence[Record], closing_balance: float) -> list[tuple[date, float]]:
    """Return the balance of each day with transactions, so that the last one is `closing_balance`."""
    flows: dict[date, float] = defaultdict(float)
    for record in records:
        flows[record.day] += record.amount
    balance, history = closing_balance, []
    for day in sorted(flows, reverse=True):
        history.append((day, balance))
        balance -= flows[day]
    if flows:
        history.append((min(flows) - timedelta(days=1), balance))
    return history[::-1]


def forecast_of(history: Sequence[tuple[date, float]], horizon_days: int) -> Forecast:
    """Return the forecast for the days after the history's last; raises Refused when the history is too short.

    A day that the history lacks has the balance of the day before.
    """
    first, balances = _every_day(history)
    flows = [after - before for before, after in pairwise(balances)]
    days = [first + timedelta(days=index + 1) for index in range(len(flows))]

    level, slope = _trend(flows)
    middle = (len(flows) - 1) / 2
    rest = [flow - level - slope * (index - middle) for index, flow in enumerate(flows)]
    monthly = _monthly(days, rest)
    rest = [value - monthly.get(day.day, 0.0) for day, value in zip(days, rest, strict=True)]
    # Without what recurs, the usual day is another one.
    level, rest = level + fmean(rest), [value - fmean(rest) for value in rest]
    weekly = _weekly(days, rest)
    rest = [value - weekly.get(day.weekday(), 0.0) for day, value in zip(days, rest, strict=True)]
    level += fmean(rest)

    known = 1 + (slope != 0) + len(monthly) + len(weekly)
    variance = math.fsum(value * value for value in rest) / max(len(rest) - known, 1)
    error = _cumulative_error(variance, len(flows), with_trend=slope != 0)
    balance, points = balances[-1], []
    for ahead in range(1, horizon_days + 1):
        day = days[-1] + timedelta(days=ahead)
        flow = level + slope * (len(flows) - 1 + ahead - middle)
        balance += flow + monthly.get(day.day, 0.0) + weekly.get(day.weekday(), 0.0)
        half = Z_80_PERCENT * error(ahead)
        points.append(Point(day, round(balance, 2), round(balance - half, 2), round(balance + half, 2)))
    return Forecast(points, round(level + slope * middle, 2), slope, monthly, weekly)


def points_csv(points: Sequence[Point]) -> bytes:
    """Return the points as CSV with a header."""
    rows = [f"{point.day},{point.balance:.2f},{point.low:.2f},{point.high:.2f}" for point in points]
    return "\n".join(["date,balance,low,high", *rows, ""]).encode()


def _every_day(history: Sequence[tuple[date, float]]) -> tuple[date, list[float]]:
    known = dict(history)
    if len(known) != len(history):
        raise Refused("the history has more than one balance for a day")
    span = (max(known) - min(known)).days + 1 if known else 0
    if not FEWEST_DAYS <= span <= MOST_DAYS:
        raise Refused(f"the history covers {span} days; a forecast needs {FEWEST_DAYS} to {MOST_DAYS}")
    first = min(known)
    balances: list[float] = []
    for index in range(span):
        day = first + timedelta(days=index)
        balances.append(known[day] if day in known else balances[-1])
    return first, balances


def _trend(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the slope around the middle; a slope within twice its standard error counts as 0."""
    count, mean = len(values), fmean(values)
    middle = (count - 1) / 2
    spread = count * (count * count - 1) / 12
    slope = math.fsum((index - middle) * value for index, value in enumerate(values)) / spread
    squares = math.fsum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(values))
    error = math.sqrt(squares / (count - 2) / spread)
    return mean, slope if abs(slope) > 2 * error else 0.0


def _monthly(days: Sequence[date], values: Sequence[float]) -> dict[int, float]:
    by_day: dict[int, list[float]] = defaultdict(list)
    for day, value in zip(days, values, strict=True):
        by_day[day.day].append(value)
    usual, scale = median(values), robust_scale(values)
    effects = {day: median(found) - usual for day, found in by_day.items() if len(found) >= FEWEST_MONTHS}
    return {day: effect for day, effect in effects.items() if abs(effect) > 3 * scale}


def _weekly(days: Sequence[date], values: Sequence[float]) -> dict[int, float]:
    by_day: dict[int, list[float]] = defaultdict(list)
    for day, value in zip(days, values, strict=True):
        by_day[day.weekday()].append(value)
    deviation = math.sqrt(fmean([value * value for value in values]))
    effects = {day: fmean(found) for day, found in by_day.items() if len(found) >= FEWEST_WEEKS}
    return {
        day: effect
        for day, effect in effects.items()
        if abs(effect) > 2 * deviation / math.sqrt(len(by_day[day]))
    }


def _cumulative_error(variance: float, count: int, *, with_trend: bool) -> Callable[[int], float]:
    """Return the standard error of the balance, as a function of the days ahead.

    Noise adds up day by day; an error in the level or the trend repeats every day.
    """
    spread = count * (count * count - 1) / 12

    def error(ahead: int) -> float:
        distance = ahead * ((count - 1) / 2 + (ahead + 1) / 2)
        shared = ahead * ahead / count + (distance * distance / spread if with_trend else 0.0)
        return math.sqrt(variance * (ahead + shared))

    return error
