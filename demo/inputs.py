"""What the organizations hand in: uploads, exports and bookings as artifacts, and events signed as Stripe does."""

import csv
import hashlib
import hmac
import io
import json
import os
import random
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from demo.invoices import scanned_invoice, text_invoice
from providers.artifacts import artifacts
from streams.agents.ai import Transaction
from streams.agents.reports import ReportRow

INVOICE_TOTAL = 1488.44
"""What every invoice of `demo.invoices` sums up to, tax included."""

YEAR = 2025


def upload_invoice(organization_id: str, number: str, *, scan: int | None = None) -> str:
    """Upload an invoice, as a scan when the number of one is given, and return its URI."""
    content = text_invoice(number) if scan is None else scanned_invoice(number, seed=scan)
    return artifacts().write(organization_id, f"uploads/{number}.pdf", content)


def bookings() -> list[Transaction]:
    """Return half a year of a small company's bookings: weekly sales, monthly rent, salaries and software."""
    chance = random.Random(YEAR)
    start = date(YEAR, 1, 1)
    sales = [
        Transaction(
            date=start + timedelta(days=7 * week), amount=chance.randint(4200, 5800), category="sales"
        )
        for week in range(26)
    ]
    costs = {"rent": (1, -2400.0), "salaries": (28, -9800.0), "software": (15, -390.0)}
    monthly = [
        Transaction(date=date(YEAR, month, day), amount=amount, category=category)
        for month in range(1, 7)
        for category, (day, amount) in costs.items()
    ]
    return sorted([*sales, *monthly], key=lambda one: one.date)


def upload_bookings(organization_id: str, transactions: Sequence[Transaction]) -> str:
    """Upload bookings as CSV and return the URI."""
    rows = [(one.date.isoformat(), one.amount, one.category) for one in transactions]
    content = _csv(("date", "amount", "category"), rows)
    return artifacts().write(organization_id, "uploads/bookings.csv", content)


def report_rows(transactions: Sequence[Transaction]) -> list[ReportRow]:
    """Return bookings as a report takes them."""
    return [
        ReportRow(date=one.date, account=one.category.title(), amount_minor=round(one.amount * 100))
        for one in transactions
    ]


def quickbooks_export(organization_id: str, entity: str, count: int) -> str:
    """Upload an export of QuickBooks, JSON lines as its API states them, and return the URI."""
    at = datetime(YEAR, 7, 1, tzinfo=UTC)
    records = [
        {
            "Id": str(number),
            "TotalAmt": 100 + number,
            "MetaData": {"LastUpdatedTime": (at + timedelta(hours=number)).isoformat()},
        }
        for number in range(1, count + 1)
    ]
    content = "\n".join(map(json.dumps, records)).encode()
    return artifacts().write(organization_id, f"exports/quickbooks-{entity}.jsonl", content)


def stripe_export(organization_id: str, collection: str, count: int) -> str:
    """Upload an export of Stripe, CSV as its dashboard makes it, and return the URI."""
    at = datetime(YEAR, 7, 1)  # noqa: DTZ001 - the column says UTC, the value does not
    rows = [(f"ch_{number:04}", at + timedelta(hours=number), 10 * number) for number in range(1, count + 1)]
    content = _csv(("id", "Created (UTC)", "Amount"), rows)
    return artifacts().write(organization_id, f"exports/stripe-{collection}.csv", content)


def leftovers(organization_id: str) -> None:
    """Leave two files in tmp/: one of last week and one of today."""
    for name, age in (("tmp/last-week.bin", timedelta(days=7)), ("tmp/today.bin", timedelta(0))):
        uri = artifacts().write(organization_id, name, b"\0" * 1024)
        at = (datetime.now(UTC) - age).timestamp()
        os.utime(artifacts().path(organization_id, uri), (at, at))


def paid_invoice(event_id: str, customer: str, at: datetime) -> bytes:
    """Return the body of Stripe's event that an invoice was paid."""
    invoice = {
        "id": "in_1", "object": "invoice", "number": "S-2025-0117", "currency": "usd", "amount_paid": 23_400,
        "customer_email": customer, "customer_name": "Clara Baker",
    }  # fmt: skip
    event = {
        "id": event_id, "object": "event", "type": "invoice.paid", "created": int(at.timestamp()),
        "data": {"object": invoice},
    }  # fmt: skip
    return json.dumps(event).encode()


def stripe_signature(body: bytes, secret: str, at: datetime) -> str:
    """Return the header `Stripe-Signature` of a body."""
    moment = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


def _csv(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heading)
    writer.writerows(rows)
    return text.getvalue().encode()
