"""Queue work in one call: a function for each job type, for applications without an event loop.

```python
job_id = queue_document_ocr(organization_id="acme", document_uri=uri, delay=timedelta(minutes=5))
```

Each takes the fields of its payload and, where wanted, the `Options` of a publish, returns the job's id once the
broker has it on every in-sync replica, and blocks until then: raises InvalidJob when the job was refused before it
left, NotAccepted when the broker did not confirm in time. With an event loop, use `streams.client.Jobs`:
`await jobs.publish(OcrDocument(document_uri=uri), organization_id="acme")`.
"""

import atexit
import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from streams.agents.ai import AnalyzeFinancials, DailyBalance, PredictCashFlow, Transaction
from streams.agents.critical import RaiseAlert
from streams.agents.documents import ClassifyDocument, OcrDocument
from streams.agents.emails import BulkRecipient, SendBulkEmail, SendEmail
from streams.agents.integrations import SyncQuickBooks, SyncStripe
from streams.agents.maintenance import CleanUp
from streams.agents.reports import GenerateReport, ReportRow
from streams.agents.scheduled import ScheduleTick
from streams.agents.webhooks import DeliverWebhook, ReceiveQuickBooksEvent, ReceiveStripeEvent
from streams.client import SyncJobs
from streams.delivery import describe
from streams.errors import InvalidJob
from streams.jobs import TYPE_OF_PAYLOAD, Payload


class Options(TypedDict, total=False):
    """How a job is published; `streams.publication.Publication` says the same for the clients."""

    job_id: str | None
    idempotency_key: str | None
    ordering_key: str | None
    priority: int
    delay: timedelta | None
    run_at: datetime | None
    max_attempts: int | None


_clients: dict[int, SyncJobs] = {}
"""Process id to client. A fork opens its own: the threads that send stay with the parent."""


def client() -> SyncJobs:
    """Return this process's client, opened at its first use and closed when the process ends."""
    process = os.getpid()
    if process not in _clients:
        _clients.setdefault(process, SyncJobs())
    return _clients[process]


@atexit.register
def _close() -> None:
    opened = _clients.get(os.getpid())
    if opened is not None:
        opened.close()


def _queue(payload_type: type[Payload], given: dict[str, Any]) -> str:
    """Publish what a function below was called with, which is all of its local variables."""
    options, organization_id = given.pop("options"), given.pop("organization_id")
    # Every None below is the default of its field.
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        payload = payload_type(**fields)
    except ValidationError as error:
        job_type = TYPE_OF_PAYLOAD[payload_type]
        raise InvalidJob(f"the payload does not fit {job_type}: {describe(error)}") from None
    return client().publish(payload, organization_id=organization_id, **options)


def queue_critical_alert(
    *,
    organization_id: str,
    severity: Literal["warning", "error", "critical"],
    title: str,
    message: str,
    recipients: Sequence[str] = (),
    webhook_url: str | None = None,
    **options: Unpack[Options],
) -> str:
    """Alert people by e-mail, a system by webhook, or both: `critical.alert`."""
    return _queue(RaiseAlert, locals())


def queue_document_ocr(
    *,
    organization_id: str,
    document_uri: str,
    language: str = "en",
    classify: bool = False,
    **options: Unpack[Options],
) -> str:
    """Read the text of a document, and classify it afterwards if asked to: `document.ocr`."""
    return _queue(OcrDocument, locals())


def queue_document_classification(*, organization_id: str, text_uri: str, **options: Unpack[Options]) -> str:
    """Say what kind of document a text is: `document.classify`."""
    return _queue(ClassifyDocument, locals())


def queue_financial_analysis(
    *,
    organization_id: str,
    period_start: date,
    period_end: date,
    transactions: Sequence[Transaction] = (),
    transactions_uri: str | None = None,
    **options: Unpack[Options],
) -> str:
    """Analyse the transactions of a period, given or in a CSV artifact: `ai.analyze_financials`."""
    return _queue(AnalyzeFinancials, locals())


def queue_cash_flow_prediction(
    *,
    organization_id: str,
    horizon_days: int,
    balances: Sequence[DailyBalance] = (),
    transactions: Sequence[Transaction] = (),
    transactions_uri: str | None = None,
    closing_balance: float = 0.0,
    **options: Unpack[Options],
) -> str:
    """Predict daily balances from one kind of history: `ai.predict_cash_flow`."""
    return _queue(PredictCashFlow, locals())


def queue_report(
    *,
    organization_id: str,
    kind: Literal["profit_and_loss", "cash_flow", "transactions"],
    format: Literal["pdf", "xlsx"],
    title: str,
    period_start: date,
    period_end: date,
    rows: Sequence[ReportRow],
    currency: str = "USD",
    opening_balance_minor: int = 0,
    deliver_to: Sequence[str] = (),
    **options: Unpack[Options],
) -> str:
    """Write a report, and mail it to those in `deliver_to`: `report.generate`."""
    return _queue(GenerateReport, locals())


def queue_email(
    *,
    organization_id: str,
    template: str,
    to: Sequence[str],
    variables: Mapping[str, str] | None = None,
    cc: Sequence[str] = (),
    reply_to: str | None = None,
    attachments: Sequence[str] = (),
    **options: Unpack[Options],
) -> str:
    """Send one message made from a template: `email.send`."""
    return _queue(SendEmail, locals())


def queue_bulk_email(
    *,
    organization_id: str,
    template: str,
    recipients: Sequence[BulkRecipient],
    variables: Mapping[str, str] | None = None,
    reply_to: str | None = None,
    attachments: Sequence[str] = (),
    **options: Unpack[Options],
) -> str:
    """Send a message of its own to each of many recipients: `email.send_bulk`."""
    return _queue(SendBulkEmail, locals())


def queue_webhook(
    *, organization_id: str, url: str, event_type: str, body: str, **options: Unpack[Options]
) -> str:
    """Post a signed event, its data given as JSON text, to another system: `webhook.deliver`."""
    return _queue(DeliverWebhook, locals())


def queue_stripe_event(
    *,
    organization_id: str,
    body: bytes,
    signature: str,
    received_at: datetime,
    **options: Unpack[Options],
) -> str:
    """Verify and handle an event as Stripe sent it: `webhook.stripe`."""
    return _queue(ReceiveStripeEvent, locals())


def queue_quickbooks_event(
    *,
    organization_id: str,
    body: bytes,
    signature: str,
    received_at: datetime,
    **options: Unpack[Options],
) -> str:
    """Verify and handle a notification as Intuit sent it: `webhook.quickbooks`."""
    return _queue(ReceiveQuickBooksEvent, locals())


def queue_quickbooks_sync(
    *, organization_id: str, entity: str, export_uri: str | None = None, **options: Unpack[Options]
) -> str:
    """Copy what changed of a QuickBooks entity: `quickbooks.sync`."""
    return _queue(SyncQuickBooks, locals())


def queue_stripe_sync(
    *, organization_id: str, collection: str, export_uri: str | None = None, **options: Unpack[Options]
) -> str:
    """Copy what changed of a Stripe collection: `stripe.sync`."""
    return _queue(SyncStripe, locals())


def queue_maintenance(
    *,
    organization_id: str,
    prefixes: Sequence[str],
    older_than_hours: float,
    **options: Unpack[Options],
) -> str:
    """Delete artifacts that have outlived their use: `maintenance.cleanup`."""
    return _queue(CleanUp, locals())


def queue_schedule_tick(
    *,
    organization_id: str,
    schedule: str,
    slot: datetime,
    job_type: str,
    payload_json: str,
    **options: Unpack[Options],
) -> str:
    """Queue the job that a schedule's slot asks for: `schedule.tick`."""
    return _queue(ScheduleTick, locals())
