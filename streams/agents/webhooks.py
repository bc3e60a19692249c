"""Queue `webhooks`: events we send to other systems, and events Stripe and QuickBooks send to us."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, field_validator

from providers.artifacts import artifacts
from providers.mail import is_address
from providers.quickbooks import notifications
from providers.records import RecordStore
from providers.stripe import events
from providers.webhooks import check_url, event_body, post
from streams.agents.emails import SendEmail
from streams.agents.integrations import SyncQuickBooks
from streams.jobs import Job, Payload, Result, handles
from streams.queues import WEBHOOKS


def checked_url(url: str) -> str:
    """Return the URL, or raise ValueError when it is not plain http or https."""
    problem = check_url(url)
    if problem:
        raise ValueError(problem)
    return url


class DeliverWebhook(Payload):
    """An event for another system; `body` is JSON text and becomes the event's `data`."""

    url: str
    event_type: str = Field(pattern=r"^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$", max_length=128)
    body: str

    _web_address = field_validator("url")(checked_url)

    @field_validator("body")
    @classmethod
    def _json(cls, value: str) -> str:
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("body must be JSON text") from None
        return value


class WebhookDelivered(Result):
    """The receiver's answer."""

    status: int


@handles(WEBHOOKS, "webhook.deliver", timeout=timedelta(seconds=30), max_attempts=8)
async def deliver_webhook(job: Job[DeliverWebhook]) -> WebhookDelivered:
    """Post a signed event; its `webhook-id` is the same on every attempt, so a receiver can drop repeats."""
    status = await post(
        job.payload.url,
        event_body(job.payload.event_type, job.queued_at, json.loads(job.payload.body)),
        organization_id=job.organization_id,
        message_id=job.idempotency_key,
        sent_at=datetime.now(UTC),
    )
    return WebhookDelivered(status=status)


class ReceiveStripeEvent(Payload):
    """An event as Stripe sent it: the untouched body, its signature, and when it came in."""

    body: bytes
    signature: str
    received_at: datetime


class EventReceived(Result):
    """What came in and what it led to."""

    event_id: str
    event_type: str
    follow_ups: int = 0


@handles(WEBHOOKS, "webhook.stripe", timeout=timedelta(seconds=30), max_attempts=5)
def receive_stripe_event(job: Job[ReceiveStripeEvent]) -> EventReceived:
    """Verify a Stripe event, keep it, and tell the customer about a paid or failed invoice."""
    request = job.payload
    event = events.verify(job.organization_id, request.body, request.signature, request.received_at)
    RecordStore(artifacts(), job.organization_id, "stripe").put("events", event.record)
    template = _INVOICE_MAILS.get(event.type)
    if template and is_address(str(event.object.get("customer_email"))):
        job.follow_up(_invoice_mail(template, event.object))
    return EventReceived(event_id=event.id, event_type=event.type, follow_ups=len(job.follow_ups))


_INVOICE_MAILS = {"invoice.paid": "payment_received", "invoice.payment_failed": "payment_failed"}


def _invoice_mail(template: str, invoice: dict[str, Any]) -> SendEmail:
    amount = invoice.get("amount_paid" if template == "payment_received" else "amount_due")
    return SendEmail(
        template=template,
        to=[str(invoice["customer_email"])],
        variables={
            "name": str(invoice.get("customer_name") or invoice["customer_email"]),
            "invoice": str(invoice.get("number") or invoice.get("id")),
            "amount": events.money(amount, invoice.get("currency")),
        },
    )


class ReceiveQuickBooksEvent(Payload):
    """A change notification as Intuit sent it: the untouched body, its signature, and when it came in."""

    body: bytes
    signature: str
    received_at: datetime


class ChangesReceived(Result):
    """Which entities changed; each is synchronised by a job of its own."""

    entities: list[str]


@handles(WEBHOOKS, "webhook.quickbooks", timeout=timedelta(seconds=30), max_attempts=5)
def receive_quickbooks_event(job: Job[ReceiveQuickBooksEvent]) -> ChangesReceived:
    """Verify a QuickBooks notification and queue a synchronisation of each entity that changed."""
    changes = notifications.verify(job.organization_id, job.payload.body, job.payload.signature)
    store = RecordStore(artifacts(), job.organization_id, "quickbooks")
    for change in changes:
        # A query never returns what was deleted, so this notice is the only trace of it.
        if change.deleted:
            store.put(change.entity, change.tombstone)
    entities = sorted({change.entity for change in changes if not change.deleted})
    for entity in entities:
        job.follow_up(SyncQuickBooks(entity=entity))
    return ChangesReceived(entities=sorted({change.entity for change in changes}))
