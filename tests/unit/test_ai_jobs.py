"""The handlers of the ai-processing queue, offline."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from providers.artifacts import artifacts
from providers.errors import Refused
from streams.agents.ai import (
    AnalyzeFinancials,
    DailyBalance,
    PredictCashFlow,
    Transaction,
    analyze_financials,
    predict_cash_flow,
)
from streams.jobs import Job

PERIOD = {"period_start": date(2025, 1, 1), "period_end": date(2025, 3, 31)}
LEDGER = {"transactions_uri": "artifact://acme/ledger.csv"}
CSV = b"date,amount,category\n2025-01-02,1000,sales\n2025-02-02,-250,rent\n"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path))
    monkeypatch.delenv("AI_PROVIDER", raising=False)


def job(payload: Any) -> Job[Any]:
    return Job("job-1", "any", "acme", payload, 1, 5, datetime.now(UTC), "job-1")


def test_transactions_given_and_from_an_artifact_are_analysed_alike() -> None:
    given = [
        Transaction(date=date(2025, 1, 2), amount=1000, category="sales"),
        Transaction(date=date(2025, 2, 2), amount=-250, category="rent"),
    ]
    uri = artifacts().write("acme", "ledger.csv", CSV)
    result = analyze_financials(job(AnalyzeFinancials(**PERIOD, transactions=given)))
    assert result == analyze_financials(job(AnalyzeFinancials(**PERIOD, transactions_uri=uri)))
    assert (result.net, result.margin, result.findings_by) == (750.0, 0.75, "rules")
    wire = result.model_dump(mode="json", by_alias=True)
    assert wire["topExpenses"] == [{"category": "rent", "total": -250.0, "count": 1}]
    assert wire["months"][1]["netChange"] == -1250.0


def test_another_organizations_ledger_is_refused() -> None:
    uri = artifacts().write("other", "ledger.csv", CSV)
    with pytest.raises(Refused, match="does not belong"):
        analyze_financials(job(AnalyzeFinancials(**PERIOD, transactions_uri=uri)))


def test_a_prediction_keeps_its_days_in_an_artifact() -> None:
    balances = [
        DailyBalance(date=date(2025, 1, 1) + timedelta(days=n), balance=1000 - 10 * n) for n in range(60)
    ]
    result = predict_cash_flow(job(PredictCashFlow(horizon_days=60, balances=balances)))
    assert result.last_day == date(2025, 4, 30)
    assert (result.balance, result.lowest_day, result.shortfall_day) == (
        -190.0,
        date(2025, 4, 30),
        date(2025, 4, 12),
    )
    rows = artifacts().read("acme", result.forecast_uri).decode().splitlines()
    assert len(rows) == 61
    assert rows[-1].startswith("2025-04-30,-190.00,")


def test_a_prediction_from_transactions_starts_at_the_closing_balance() -> None:
    daily = [Transaction(date=date(2025, 1, 1) + timedelta(days=n), amount=5) for n in range(30)]
    result = predict_cash_flow(job(PredictCashFlow(horizon_days=2, transactions=daily, closing_balance=500)))
    assert result.balance == 510.0


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (AnalyzeFinancials, PERIOD),
        (AnalyzeFinancials, {**PERIOD, **LEDGER, "transactions": [{"date": "2025-01-01", "amount": 1}]}),
        (AnalyzeFinancials, {"period_start": "2025-02-01", "period_end": "2025-01-01", **LEDGER}),
        (AnalyzeFinancials, {**PERIOD, "transactions": [{"date": "2025-01-01", "amount": "nan"}]}),
        (PredictCashFlow, {"horizon_days": 10}),
        (PredictCashFlow, {"horizon_days": 0, **LEDGER}),
        (PredictCashFlow, {"horizon_days": 367, **LEDGER}),
    ],
)
def test_payloads_that_contradict_themselves_are_refused(payload: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        payload(**fields)
