"""What a period's transactions add up to, how the months went, and which transactions stand out."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from statistics import fmean, median
from typing import Any

from providers.ai.transactions import Record
from providers.errors import Refused

TOP = 5
MAX_OUTLIERS = 10
OUTLIER_SCORE = 3.5
"""Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993: modified z-scores beyond it stand out."""
FEWEST_TO_COMPARE = 8


@dataclass(frozen=True, slots=True)
class CategoryTotal:
    """The sum of a category's transactions, negative for an expense."""

    category: str
    total: float
    count: int


@dataclass(frozen=True, slots=True)
class MonthTotal:
    """One calendar month; `expenses` is positive, `net_change` is against the month before."""

    month: str
    income: float
    expenses: float
    net: float
    net_change: float | None


@dataclass(frozen=True, slots=True)
class Outlier:
    """A transaction far from the median of its category, in its modified z-score."""

    date: date
    amount: float
    category: str
    score: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The computed part of an analysis; `expenses` is positive, `margin` is net / income."""

    income: float
    expenses: float
    net: float
    margin: float | None
    transactions: int
    top_income: list[CategoryTotal]
    top_expenses: list[CategoryTotal]
    months: list[MonthTotal]
    outliers: list[Outlier]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dictionaries and lists."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Findings:
    """What stands out, in sentences, and which provider found the words."""

    sentences: list[str]
    by: str


def figures_of(records: Sequence[Record], start: date, end: date) -> Figures:
    """Return the figures of the records from `start` to `end`, both included; raises Refused if there are none."""
    inside = [record for record in records if start <= record.day <= end]
    if not inside:
        raise Refused(f"no transactions between {start} and {end}")
    income, expenses = _sides(inside)
    totals = _by_category(inside)
    return Figures(
        income=income,
        expenses=expenses,
        net=_money([income, -expenses]),
        margin=round((income - expenses) / income, 4) if income else None,
        transactions=len(inside),
        top_income=sorted((t for t in totals if t.total > 0), key=lambda t: -t.total)[:TOP],
        top_expenses=sorted((t for t in totals if t.total < 0), key=lambda t: t.total)[:TOP],
        months=_months(inside),
        outliers=_outliers(inside),
    )


def _money(amounts: Iterable[float]) -> float:
    """Return the sum in cents exactly, whatever the order of the amounts."""
    return round(math.fsum(amounts), 2)


def _sides(records: Sequence[Record]) -> tuple[float, float]:
    income = _money(record.amount for record in records if record.amount > 0)
    return income, _money(-record.amount for record in records if record.amount < 0)


def _by_category(records: Sequence[Record]) -> list[CategoryTotal]:
    amounts: dict[str, list[float]] = defaultdict(list)
    for record in records:
        amounts[record.category].append(record.amount)
    return [CategoryTotal(name, _money(values), len(values)) for name, values in sorted(amounts.items())]


def _months(records: Sequence[Record]) -> list[MonthTotal]:
    by_month: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_month[f"{record.day:%Y-%m}"].append(record)
    totals: list[MonthTotal] = []
    for month in _months_between(min(by_month), max(by_month)):
        income, expenses = _sides(by_month.get(month, []))
        net = _money([income, -expenses])
        change = _money([net, -totals[-1].net]) if totals else None
        totals.append(MonthTotal(month, income, expenses, net, change))
    return totals


def _months_between(first: str, last: str) -> list[str]:
    """Return the months from first to last, those without transactions too."""
    start, end = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (first, last))
    return [f"{index // 12:04}-{index % 12 + 1:02}" for index in range(start, end + 1)]


def _outliers(records: Sequence[Record]) -> list[Outlier]:
    """Return the transactions that stand out in their category, the most striking first.

    Income and expenses of one category are compared apart.
    """
    groups: dict[tuple[str, bool], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.category, record.amount > 0].append(record)
    found = [
        Outlier(record.day, record.amount, record.category, round(score, 2))
        for group in groups.values()
        if len(group) >= FEWEST_TO_COMPARE
        for record, score in zip(group, modified_z_scores([r.amount for r in group]), strict=True)
        if abs(score) > OUTLIER_SCORE
    ]
    return sorted(found, key=lambda outlier: -abs(outlier.score))[:MAX_OUTLIERS]


def modified_z_scores(values: Sequence[float]) -> list[float]:
    """Return each value's distance from the median in robust standard deviations; 0 for all when all are equal."""
    middle, scale = median(values), robust_scale(values)
    return [(value - middle) / scale if scale else 0.0 for value in values]


def robust_scale(values: Sequence[float]) -> float:
    """Return the spread of the values as a standard deviation that a few extremes hardly change.

    It is the median absolute deviation, scaled by 1 / 0.6745 to fit a normal sample. When more than half of the
    values are the same that is zero, and the mean absolute deviation, scaled by 1.2533, takes its place.
    """
    middle = median(values)
    distances = [abs(value - middle) for value in values]
    scale = median(distances) / 0.6745
    # Rounding noise of equal amounts must not count as spread.
    least = 1e-9 * max(1.0, abs(middle))
    if scale <= least:
        scale = fmean(distances) * 1.2533
    return scale if scale > least else 0.0
