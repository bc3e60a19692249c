"""Queue `critical`: alerts that must reach people now."""

import asyncio
import json
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from providers.errors import ProviderError, Refused
from providers.mail import Mail, deterministic_id, mail_provider, render
from providers.webhooks import event_body, post
from streams.agents.emails import SendEmail, only_addresses
from streams.agents.webhooks import DeliverWebhook, checked_url
from streams.jobs import Job, Payload, Result, handles
from streams.queues import CRITICAL

EVENT = "alert.raised"


class RaiseAlert(Payload):
    """An alert and where it goes: people by e-mail, a system by webhook, or both."""

    severity: Literal["warning", "error", "critical"]
    title: str = Field(min_length=1, max_length=200)
    message: str = Field(max_length=10_000)
    recipients: list[str] = Field(default_factory=list, max_length=50)
    webhook_url: str | None = None

    _addresses = field_validator("recipients")(only_addresses)

    @field_validator("webhook_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        return None if value is None else checked_url(value)

    @model_validator(mode="after")
    def _goes_somewhere(self) -> "RaiseAlert":
        if not self.recipients and self.webhook_url is None:
            raise ValueError("an alert needs recipients, a webhookUrl, or both")
        return self

    @property
    def variables(self) -> dict[str, str]:
        return {"severity": self.severity, "title": self.title, "message": self.message}


class AlertRaised(Result):
    """Each way the alert was to go, and how that went: `sent`, `queued` or `refused`."""

    email: str | None = None
    webhook: str | None = None


@handles(CRITICAL, "critical.alert", timeout=timedelta(seconds=20), max_attempts=10)
async def raise_alert(job: Job[RaiseAlert]) -> AlertRaised:
    """Send an alert by e-mail and webhook at the same time.

    A way that fails while the other works is queued as a job of its own, so that the way that worked is not
    repeated. When all fail, the alert itself is retried.
    """
    alert, ways = job.payload, {}
    if alert.recipients:
        ways["email"] = _send_email(job)
    if alert.webhook_url is not None:
        ways["webhook"] = _post_webhook(job)
    answers = await asyncio.gather(*(_answer(way) for way in ways.values()))
    errors = {way: error for way, error in zip(ways, answers, strict=True) if error is not None}
    if len(errors) == len(ways):
        # The one that may still succeed decides; only when every way is refused is the alert beyond help.
        raise next((e for e in errors.values() if not isinstance(e, Refused)), next(iter(errors.values())))
    result = dict.fromkeys(ways, "sent")
    for way, error in errors.items():
        result[way] = "refused" if isinstance(error, Refused) else "queued"
        if result[way] == "queued":
            job.follow_up(_as_email(alert) if way == "email" else _as_webhook(alert))
    return AlertRaised(**result)


async def _answer(way: Awaitable[None]) -> ProviderError | None:
    try:
        await way
    except ProviderError as error:
        return error
    return None


async def _send_email(job: Job[RaiseAlert]) -> None:
    alert = job.payload
    content = render("critical_alert", alert.variables)
    mail = Mail(
        message_id=deterministic_id(job.organization_id, job.idempotency_key),
        subject=content.subject,
        text=content.text,
        html=content.html,
        to=tuple(alert.recipients),
        urgent=True,
    )
    receipt = await mail_provider().send(job.organization_id, mail)
    if receipt.deferred:
        job.follow_up(_as_email(alert.model_copy(update={"recipients": list(receipt.deferred)})))


async def _post_webhook(job: Job[RaiseAlert]) -> None:
    await post(
        job.payload.webhook_url or "",
        event_body(EVENT, job.queued_at, job.payload.variables),
        organization_id=job.organization_id,
        message_id=job.idempotency_key,
        sent_at=datetime.now(UTC),
    )


def _as_email(alert: RaiseAlert) -> SendEmail:
    return SendEmail(template="critical_alert", to=alert.recipients, variables=alert.variables)


def _as_webhook(alert: RaiseAlert) -> DeliverWebhook:
    return DeliverWebhook(
        url=alert.webhook_url or "", event_type=EVENT, body=json.dumps(alert.variables, ensure_ascii=False)
    )
