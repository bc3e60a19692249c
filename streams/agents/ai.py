"""Jobs of the `ai-processing` queue: analyse an organization's finances, predict its cash flow."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Self

from pydantic import Field, model_validator

from providers.ai import (
    MAX_BYTES,
    Record,
    analyst,
    daily_balances,
    points_csv,
    read_transactions,
)
from providers.artifacts import artifacts
from streams.jobs import Job, Payload, Result, handles
from streams.queues import AI


class Transaction(Payload):
    """One booking; `amount` is in the organization's currency, income positive, expense negative."""

    date: date
    amount: float = Field(allow_inf_nan=False)
    category: str = "uncategorized"
    description: str = ""


class DailyBalance(Payload):
    """What an account held at the end of a day."""

    date: date
    balance: float = Field(allow_inf_nan=False)


class AnalyzeFinancials(Payload):
    """Analyse the transactions of a period, given here or in a CSV artifact (date,amount,category,description)."""

    period_start: date
    period_end: date
    transactions: list[Transaction] = Field(default_factory=list)
    transactions_uri: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.period_end < self.period_start:
            raise ValueError("periodEnd must not be before periodStart")
        if bool(self.transactions) == bool(self.transactions_uri):
            raise ValueError("expected either transactions or transactionsUri")
        return self


class CategoryTotal(Result):
    """What one category sums up to in the period; negative for an expense."""

    category: str
    total: float
    count: int


class MonthTotal(Result):
    """One calendar month, "YYYY-MM"; `expenses` is positive, `net_change` is against the month before."""

    month: str
    income: float
    expenses: float
    net: float
    net_change: float | None = None


class Outlier(Result):
    """A transaction far from what its category usually has; `score` is the modified z-score."""

    date: date
    amount: float
    category: str
    score: float


class FinancialAnalysis(Result):
    """The figures of a period, and findings in words; `margin` is net / income, None without income."""

    income: float
    expenses: float
    net: float
    margin: float | None
    transactions: int
    top_income: list[CategoryTotal]
    top_expenses: list[CategoryTotal]
    months: list[MonthTotal]
    outliers: list[Outlier]
    findings: list[str]
    findings_by: str


class PredictCashFlow(Payload):
    """Predict daily balances from past ones, or from transactions that end at `closing_balance`."""

    horizon_days: int = Field(ge=1, le=366)
    balances: list[DailyBalance] = Field(default_factory=list)
    transactions: list[Transaction] = Field(default_factory=list)
    transactions_uri: str | None = None
    closing_balance: float = Field(default=0.0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _has_one_history(self) -> Self:
        if sum(map(bool, (self.balances, self.transactions, self.transactions_uri))) != 1:
            raise ValueError("expected exactly one of balances, transactions and transactionsUri")
        return self


class CashFlowPrediction(Result):
    """The forecast in short; `forecast_uri` is a CSV artifact with date,balance,low,high for each day.

    `low` and `high` bound an 80 % prediction interval.
    """

    last_day: date
    balance: float
    low: float
    high: float
    lowest_balance: float
    lowest_day: date
    shortfall_day: date | None
    """The first day whose `low` is below zero: the money may run out."""
    findings: list[str]
    findings_by: str
    forecast_uri: str


@handles(AI, "ai.analyze_financials", timeout=timedelta(minutes=3), provider="ai")
def analyze_financials(job: Job[AnalyzeFinancials]) -> FinancialAnalysis:
    """Compute the figures and put them into words."""
    records = _records(job.organization_id, job.payload.transactions, job.payload.transactions_uri)
    figures, findings = analyst().analyze(records, job.payload.period_start, job.payload.period_end)
    return FinancialAnalysis.model_validate(
        {**figures.to_dict(), "findings": findings.sentences, "findings_by": findings.by}
    )


@handles(AI, "ai.predict_cash_flow", timeout=timedelta(minutes=3), provider="ai")
def predict_cash_flow(job: Job[PredictCashFlow]) -> CashFlowPrediction:
    """Forecast the balance of every day up to the horizon, with its interval."""
    payload = job.payload
    if payload.balances:
        history = [(entry.date, entry.balance) for entry in payload.balances]
    else:
        records = _records(job.organization_id, payload.transactions, payload.transactions_uri)
        history = daily_balances(records, payload.closing_balance)
    forecast, findings = analyst().predict(history, payload.horizon_days)
    uri = artifacts().write(job.organization_id, f"forecasts/{job.id}.csv", points_csv(forecast.points))
    last, lowest = forecast.points[-1], forecast.lowest
    return CashFlowPrediction(
        last_day=last.day,
        balance=last.balance,
        low=last.low,
        high=last.high,
        lowest_balance=lowest.balance,
        lowest_day=lowest.day,
        shortfall_day=forecast.shortfall_day,
        findings=findings.sentences,
        findings_by=findings.by,
        forecast_uri=uri,
    )


def _records(organization_id: str, given: Sequence[Transaction], uri: str | None) -> list[Record]:
    if uri is not None:
        return read_transactions(artifacts().read(organization_id, uri, max_bytes=MAX_BYTES))
    return [Record(entry.date, entry.amount, entry.category, entry.description) for entry in given]
