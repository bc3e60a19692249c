"""Put figures into words by rules."""

from collections.abc import Sequence
from datetime import date

from providers.ai.analysis import Figures, Findings, figures_of
from providers.ai.forecast import Forecast, forecast_of
from providers.ai.transactions import Record

THIN_MARGIN = 0.1
NOTABLE_CHANGE = 0.2
LARGE_SHARE = 0.4
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class LocalAnalyst:
    """Computes the figures and states what crosses a fixed threshold."""

    def analyze(self, records: Sequence[Record], start: date, end: date) -> tuple[Figures, Findings]:
        figures = figures_of(records, start, end)
        return figures, Findings(_about_figures(figures), "rules")

    def predict(self, history: Sequence[tuple[date, float]], horizon_days: int) -> tuple[Forecast, Findings]:
        forecast = forecast_of(history, horizon_days)
        return forecast, Findings(_about_forecast(forecast), "rules")


def _about_figures(figures: Figures) -> list[str]:
    found = []
    if figures.margin is None:
        found.append(f"There was no income; expenses were {figures.expenses:,.2f}.")
    elif figures.net < 0:
        found.append(f"Expenses exceeded income by {-figures.net:,.2f}.")
    elif figures.margin < THIN_MARGIN:
        found.append(f"The margin is thin: {figures.margin:.1%} of income remained.")
    else:
        found.append(f"{figures.margin:.1%} of income remained: {figures.net:,.2f}.")
    if figures.top_expenses and figures.expenses:
        top = figures.top_expenses[0]
        share = -top.total / figures.expenses
        if share >= LARGE_SHARE:
            found.append(f"{top.category} makes up {share:.0%} of all expenses.")
    found += _about_months(figures)
    if figures.outliers:
        worst = figures.outliers[0]
        found.append(
            f"{len(figures.outliers)} unusual transactions; the most striking is {worst.amount:,.2f} "
            f"in {worst.category} on {worst.date}."
        )
    return found


def _about_months(figures: Figures) -> list[str]:
    """Compare the last month with the one before."""
    found = []
    if len(figures.months) >= 2:
        before, last = figures.months[-2:]
        for name, old, new in (
            ("Income", before.income, last.income),
            ("Expenses", before.expenses, last.expenses),
        ):
            change = (new - old) / old if old else 0.0
            if abs(change) >= NOTABLE_CHANGE:
                direction = "rose" if change > 0 else "fell"
                found.append(f"{name} {direction} by {abs(change):.0%} from {before.month} to {last.month}.")
    return found


def _about_forecast(forecast: Forecast) -> list[str]:
    last = forecast.points[-1]
    found = [
        f"The balance expected on {last.day} is {last.balance:,.2f}, between {last.low:,.2f} and {last.high:,.2f}."
    ]
    if forecast.shortfall_day is not None:
        found.append(f"The balance may fall below zero from {forecast.shortfall_day} on.")
    if forecast.daily_trend:
        direction = "improving" if forecast.daily_trend > 0 else "worsening"
        found.append(f"The daily flow is {direction} by {abs(forecast.daily_trend):,.2f} a day.")
    if forecast.monthly:
        day, amount = max(forecast.monthly.items(), key=lambda item: abs(item[1]))
        found.append(f"The largest flow that recurs is {amount:,.2f} on day {day} of the month.")
    if forecast.weekly:
        weekday, amount = min(forecast.weekly.items(), key=lambda item: item[1])
        found.append(f"The weakest weekday is {WEEKDAYS[weekday]}: {amount:,.2f} against the average.")
    return found
