"""Queue `reports`: financial reports as PDF or XLSX, delivered by e-mail."""

import hashlib
from datetime import date, timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from providers.artifacts import artifacts
from providers.reports import Entry, Report, produce
from streams.agents.emails import SendEmail, only_addresses
from streams.jobs import Job, Payload, Result, handles
from streams.queues import REPORTS


class ReportRow(Payload):
    """One booking: positive amounts come in, negative ones go out; in minor units, such as cents."""

    date: date
    account: str
    amount_minor: int
    description: str = ""


class GenerateReport(Payload):
    """What to report on, in which form, and who gets it."""

    kind: Literal["profit_and_loss", "cash_flow", "transactions"]
    format: Literal["pdf", "xlsx"]
    title: str = Field(min_length=1, max_length=200)
    period_start: date
    period_end: date
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$")
    opening_balance_minor: int = 0
    rows: list[ReportRow]
    deliver_to: list[str] = Field(default_factory=list, max_length=50)

    _addresses = field_validator("deliver_to")(only_addresses)

    @model_validator(mode="after")
    def _period_runs_forward(self) -> "GenerateReport":
        if self.period_end < self.period_start:
            raise ValueError("periodEnd must not be before periodStart")
        if any(not self.period_start <= row.date <= self.period_end for row in self.rows):
            raise ValueError("every row must lie within the period")
        return self


class ReportReady(Result):
    """Where the report is."""

    uri: str
    size_bytes: int
    rows: int


@handles(REPORTS, "report.generate", timeout=timedelta(minutes=5), max_attempts=3, runs_in="process")
def generate_report(job: Job[GenerateReport]) -> ReportReady:
    """Write a report into the organization's artifacts and mail it; a repeat writes the same file again."""
    wanted = job.payload
    report = Report(
        kind=wanted.kind,
        title=wanted.title,
        start=wanted.period_start,
        end=wanted.period_end,
        currency=wanted.currency,
        opening_balance_minor=wanted.opening_balance_minor,
        entries=tuple(Entry(r.date, r.account, r.amount_minor, r.description) for r in wanted.rows),
    )
    content = produce(report, wanted.format)
    key = hashlib.sha256(job.idempotency_key.encode()).hexdigest()[:16]
    uri = artifacts().write(job.organization_id, f"reports/{wanted.kind}-{key}.{wanted.format}", content)
    if wanted.deliver_to:
        job.follow_up(
            SendEmail(
                template="report_ready",
                to=wanted.deliver_to,
                variables={"title": wanted.title, "period": report.period},
                attachments=[uri],
            )
        )
    return ReportReady(uri=uri, size_bytes=len(content), rows=len(wanted.rows))
