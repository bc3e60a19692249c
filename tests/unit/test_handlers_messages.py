"""Handlers of e-mail, alerts and webhooks, with the offline providers and scripted ones."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from providers.artifacts import artifacts
from providers.errors import ProviderError, RateLimited, Refused, Unavailable
from providers.mail import Mail, Receipt
from providers.quickbooks import CONNECTIONS
from streams.agents import critical, emails, webhooks
from streams.agents.critical import RaiseAlert, raise_alert
from streams.agents.emails import BulkRecipient, SendBulkEmail, SendEmail, send_bulk_email, send_email
from streams.agents.integrations import SyncQuickBooks
from streams.agents.webhooks import (
    DeliverWebhook,
    ReceiveQuickBooksEvent,
    ReceiveStripeEvent,
    deliver_webhook,
    receive_quickbooks_event,
    receive_stripe_event,
)
from streams.jobs import TYPE_OF_PAYLOAD, Job, Payload

P = TypeVar("P", bound=Payload)
AT = datetime(2026, 4, 15, 12, tzinfo=UTC)
DUE = {"name": "Ada", "invoice": "42", "amount": "10.00 USD", "due": "2026-05-01"}


def job(payload: P, organization_id: str = "acme") -> Job[P]:
    return Job("job-1", TYPE_OF_PAYLOAD[type(payload)], organization_id, payload, 1, 5, AT, "key-1")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path))
    monkeypatch.setenv("MAIL_PROVIDER", "folder")
    monkeypatch.delenv(CONNECTIONS, raising=False)
    return tmp_path


def kept_mails(folder: Path) -> list[EmailMessage]:
    return [message_from_bytes(path.read_bytes(), policy=default) for path in sorted(folder.rglob("*.eml"))]


class ScriptedMail:
    """A mail provider that answers as told."""

    def __init__(self, answer: Receipt | ProviderError) -> None:
        self.answer = answer
        self.sent: list[Mail] = []

    async def send(self, organization_id: str, mail: Mail) -> Receipt:
        self.sent.append(mail)
        if isinstance(self.answer, ProviderError):
            raise self.answer
        return self.answer


async def test_an_email_is_filled_and_a_repeat_is_the_same_message(folder: Path) -> None:
    uri = artifacts().write("acme", "reports/q1.pdf", b"%PDF-")
    payload = SendEmail(
        template="invoice_due", to=["ada@acme.example"], cc=["bo@acme.example"], variables=DUE,
        reply_to="books@acme.example", attachments=[uri],
    )  # fmt: skip
    first = await send_email(job(payload))
    assert await send_email(job(payload)) == first
    (message,) = kept_mails(folder)
    assert message["Subject"] == "Invoice 42 is due on 2026-05-01"
    assert (message["To"], message["Cc"], message["Reply-To"]) == (
        "ada@acme.example", "bo@acme.example", "books@acme.example",
    )  # fmt: skip
    assert message["Message-ID"] == first.message_id
    assert first.accepted == 2
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == "q1.pdf"
    assert attachment.get_content() == b"%PDF-"
    assert attachment.get_content_type() == "application/pdf"


async def test_an_attachment_of_another_organization_is_refused(folder: Path) -> None:
    uri = artifacts().write("globex", "reports/q1.pdf", b"secret")
    payload = SendEmail(template="invoice_due", to=["a@b.example"], variables=DUE, attachments=[uri])
    with pytest.raises(Refused):
        await send_email(job(payload))
    assert kept_mails(folder) == []


async def test_only_recipients_who_were_put_off_get_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = ScriptedMail(Receipt(refused=("x@b.example",), deferred=("y@b.example",)))
    monkeypatch.setattr(emails, "mail_provider", lambda: scripted)
    addresses = ["w@b.example", "x@b.example", "y@b.example"]
    running = job(SendEmail(template="invoice_due", to=addresses, cc=["z@b.example"], variables=DUE))
    sent = await send_email(running)
    assert (sent.accepted, sent.refused, sent.deferred) == (2, 1, 1)
    (later,) = running.follow_ups
    assert later.payload == SendEmail(template="invoice_due", to=["y@b.example"], variables=DUE)
    assert later.delay == emails.GREYLISTED


@pytest.mark.parametrize("error", [Unavailable("x"), Refused("x"), RateLimited("x", timedelta(seconds=9))])
async def test_what_the_provider_raises_passes_through(
    monkeypatch: pytest.MonkeyPatch, error: ProviderError
) -> None:
    monkeypatch.setattr(emails, "mail_provider", lambda: ScriptedMail(error))
    with pytest.raises(type(error)) as raised:
        await send_email(job(SendEmail(template="invoice_due", to=["a@b.example"], variables=DUE)))
    assert raised.value is error


def test_bulk_makes_one_email_for_each_recipient() -> None:
    running = job(
        SendBulkEmail(
            template="invoice_due",
            recipients=[
                BulkRecipient(to="ada@b.example", variables={"name": "Ada"}),
                BulkRecipient(to="bo@b.example", variables={"name": "Bo", "amount": "5.00 USD"}),
            ],
            variables=DUE,
        )
    )
    assert send_bulk_email(running).queued == 2
    assert [follow_up.payload for follow_up in running.follow_ups] == [
        SendEmail(template="invoice_due", to=["ada@b.example"], variables=DUE),
        SendEmail(
            template="invoice_due", to=["bo@b.example"], variables=DUE | {"name": "Bo", "amount": "5.00 USD"}
        ),
    ]


def test_bulk_that_cannot_be_filled_for_one_sends_to_none() -> None:
    without_name = {key: value for key, value in DUE.items() if key != "name"}
    recipients = [BulkRecipient(to="a@b.example", variables=DUE), BulkRecipient(to="c@b.example")]
    running = job(SendBulkEmail(template="invoice_due", recipients=recipients, variables=without_name))
    with pytest.raises(Refused, match="name"):
        send_bulk_email(running)
    assert running.follow_ups == []


@pytest.mark.parametrize(
    "fields",
    [
        {"to": []}, {"to": ["Ada <a@b>"]}, {"to": ["a@b\nBcc: c@d"]}, {"to": ["a@b"], "cc": ["x"]},
        {"to": ["a@b"], "reply_to": "x"}, {"to": ["a@b"] * 51}, {"to": ["a@b"], "bcc": ["c@d"]},
    ],
)  # fmt: skip
def test_a_wrong_email_is_refused_before_it_is_published(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SendEmail(template="welcome", **fields)


ALERT = RaiseAlert(
    severity="critical", title="Backup failed", message="Disk <full>", recipients=["ops@acme.example"],
    webhook_url="https://acme.example/alerts",
)  # fmt: skip


class ScriptedPost:
    """Stands for `providers.webhooks.post`."""

    def __init__(self, error: ProviderError | None = None) -> None:
        self.error = error
        self.posted: list[tuple[str, bytes, dict[str, Any]]] = []

    async def __call__(self, url: str, body: bytes, **how: Any) -> int:
        self.posted.append((url, body, how))
        if self.error:
            raise self.error
        return 200


async def test_an_alert_goes_both_ways_at_once(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    post = ScriptedPost()
    monkeypatch.setattr(critical, "post", post)
    running = job(ALERT)
    result = await raise_alert(running)
    assert (result.email, result.webhook, running.follow_ups) == ("sent", "sent", [])
    (message,) = kept_mails(folder)
    assert message["Subject"] == "[CRITICAL] Backup failed"
    assert message["X-Priority"] == "1"
    ((url, body, how),) = post.posted
    assert url == "https://acme.example/alerts"
    assert json.loads(body)["data"]["message"] == "Disk <full>"
    assert (how["organization_id"], how["message_id"]) == ("acme", "key-1")


async def test_one_way_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critical, "post", ScriptedPost())
    by_mail = await raise_alert(job(ALERT.model_copy(update={"webhook_url": None})))
    by_webhook = await raise_alert(job(ALERT.model_copy(update={"recipients": []})))
    assert (by_mail.email, by_mail.webhook) == ("sent", None)
    assert (by_webhook.email, by_webhook.webhook) == (None, "sent")


async def test_the_way_that_fails_is_queued_and_the_other_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(critical, "post", ScriptedPost(Unavailable("down")))
    running = job(ALERT)
    assert (await raise_alert(running)).webhook == "queued"
    (later,) = running.follow_ups
    assert isinstance(later.payload, DeliverWebhook)
    assert json.loads(later.payload.body)["title"] == "Backup failed"

    monkeypatch.setattr(critical, "post", ScriptedPost())
    monkeypatch.setattr(critical, "mail_provider", lambda: ScriptedMail(Unavailable("down")))
    running = job(ALERT)
    assert (await raise_alert(running)).email == "queued"
    (later,) = running.follow_ups
    assert later.payload == SendEmail(
        template="critical_alert", to=["ops@acme.example"], variables=ALERT.variables
    )


async def test_a_way_that_is_refused_does_not_hold_the_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critical, "post", ScriptedPost(Refused("gone")))
    running = job(ALERT)
    result = await raise_alert(running)
    assert (result.email, result.webhook, running.follow_ups) == ("sent", "refused", [])


@pytest.mark.parametrize(
    ("mail_error", "post_error", "raised"),
    [
        (Unavailable("x"), Unavailable("y"), Unavailable),
        (Refused("x"), Unavailable("y"), Unavailable),
        (Unavailable("x"), Refused("y"), Unavailable),
        (Refused("x"), Refused("y"), Refused),
    ],
)
async def test_when_every_way_fails_the_alert_is_retried_while_one_may_work(
    monkeypatch: pytest.MonkeyPatch,
    mail_error: ProviderError,
    post_error: ProviderError,
    raised: type[ProviderError],
) -> None:
    monkeypatch.setattr(critical, "mail_provider", lambda: ScriptedMail(mail_error))
    monkeypatch.setattr(critical, "post", ScriptedPost(post_error))
    with pytest.raises(raised):
        await raise_alert(job(ALERT))


def test_an_alert_to_nobody_is_refused() -> None:
    with pytest.raises(ValidationError, match="recipients"):
        RaiseAlert(severity="error", title="x", message="y")
    with pytest.raises(ValidationError):
        RaiseAlert(severity="error", title="x", message="y", webhook_url="https://user:pw@acme.example")


async def test_a_webhook_carries_the_event_and_the_jobs_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    post = ScriptedPost()
    monkeypatch.setattr(webhooks, "post", post)
    payload = DeliverWebhook(url="https://acme.example/h", event_type="invoice.paid", body='{"id": "1"}')
    assert (await deliver_webhook(job(payload))).status == 200
    ((_, body, how),) = post.posted
    event = json.loads(body)
    assert event == {"type": "invoice.paid", "timestamp": "2026-04-15T12:00:00+00:00", "data": {"id": "1"}}
    assert (how["organization_id"], how["message_id"]) == ("acme", "key-1")


@pytest.mark.parametrize(
    "fields",
    [{"url": "ftp://x"}, {"body": "{"}, {"body": "[" * 100_000}, {"event_type": "a b"}, {"event_type": ""}],
)
def test_a_wrong_webhook_is_refused_before_it_is_published(fields: dict[str, str]) -> None:
    right = {"url": "https://acme.example", "event_type": "a.b", "body": "{}"}
    assert DeliverWebhook(**right)
    with pytest.raises(ValidationError):
        DeliverWebhook(**(right | fields))


def stripe_event(kind: str, **invoice: Any) -> ReceiveStripeEvent:
    body = json.dumps(
        {
            "id": "evt_1", "type": kind, "created": int(AT.timestamp()),
            "data": {"object": {"id": "in_1", "currency": "usd", "amount_paid": 1250, "amount_due": 99, **invoice}},
        }
    ).encode()  # fmt: skip
    signed = f"{int(AT.timestamp())}.".encode() + body
    digest = hmac.new(b"whsec_test", signed, hashlib.sha256).hexdigest()
    return ReceiveStripeEvent(body=body, signature=f"t={int(AT.timestamp())},v1={digest}", received_at=AT)


@pytest.mark.parametrize(
    ("kind", "template", "amount"),
    [
        ("invoice.paid", "payment_received", "12.50 USD"),
        ("invoice.payment_failed", "payment_failed", "0.99 USD"),
    ],
)
def test_a_stripe_invoice_is_kept_and_its_customer_told(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, template: str, amount: str
) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_test")
    running = job(stripe_event(kind, customer_email="ada@b.example", customer_name="Ada", number="A-1"))
    assert receive_stripe_event(running).follow_ups == 1
    assert json.loads((folder / "acme/stripe/events/evt_1.json").read_text())["data"]["type"] == kind
    assert running.follow_ups[0].payload == SendEmail(
        template=template, to=["ada@b.example"], variables={"name": "Ada", "invoice": "A-1", "amount": amount}
    )


def test_other_stripe_events_are_only_kept(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_test")
    for payload in (
        stripe_event("invoice.paid"),
        stripe_event("invoice.paid", customer_email=None),
        stripe_event("invoice.paid", customer_email="not an address"),
        stripe_event("customer.created", customer_email="ada@b.example"),
    ):
        running = job(payload)
        assert receive_stripe_event(running).follow_ups == 0
        assert running.follow_ups == []
    assert (folder / "acme/stripe/events/evt_1.json").exists()


def test_a_forged_stripe_event_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "another")
    with pytest.raises(Refused):
        receive_stripe_event(job(stripe_event("invoice.paid")))
    assert list(folder.rglob("*.json")) == []


def test_a_quickbooks_notification_queues_one_sync_for_each_entity(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    import base64

    monkeypatch.setenv("QUICKBOOKS_VERIFIER_TOKEN", "verifier")
    changes = [
        ("Invoice", "1", "Update"),
        ("Invoice", "2", "Create"),
        ("Bill", "3", "Update"),
        ("Item", "4", "Delete"),
    ]
    entities = [
        {"name": name, "id": identity, "operation": operation, "lastUpdated": "2026-04-15T12:00:00Z"}
        for name, identity, operation in changes
    ]
    notification = {"eventNotifications": [{"realmId": "42", "dataChangeEvent": {"entities": entities}}]}
    body = json.dumps(notification).encode()
    signature = base64.b64encode(hmac.new(b"verifier", body, hashlib.sha256).digest()).decode()
    running = job(ReceiveQuickBooksEvent(body=body, signature=signature, received_at=AT))
    assert receive_quickbooks_event(running).entities == ["Bill", "Invoice", "Item"]
    assert [follow_up.payload for follow_up in running.follow_ups] == [
        SyncQuickBooks(entity="Bill"), SyncQuickBooks(entity="Invoice"),
    ]  # fmt: skip
    kept = json.loads((folder / "acme/quickbooks/Item/4.json").read_text())
    assert kept["data"]["status"] == "Deleted"
