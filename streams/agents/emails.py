"""Queue `emails`: notification e-mail from templates, to one recipient or to many."""

import asyncio
from datetime import timedelta

from pydantic import Field, field_validator

from providers.artifacts import artifacts
from providers.mail import Attachment, Mail, deterministic_id, is_address, mail_provider, render
from streams.jobs import Job, Payload, Result, handles
from streams.queues import EMAILS

GREYLISTED = timedelta(minutes=5)
"""How long to wait for the recipients whom a server put off while it took the others."""

LARGEST_ATTACHMENT_BYTES = 15 * 1024 * 1024


def only_addresses(addresses: list[str]) -> list[str]:
    """Return the addresses, or raise ValueError when one is not `local@domain`."""
    if not all(is_address(address) for address in addresses):
        raise ValueError("expected addresses of the form local@domain, without a display name")
    return addresses


class SendEmail(Payload):
    """One message: a template, what fills it, and who gets it."""

    template: str
    to: list[str] = Field(min_length=1, max_length=50)
    variables: dict[str, str] = Field(default_factory=dict)
    cc: list[str] = Field(default_factory=list, max_length=50)
    reply_to: str | None = None
    attachments: list[str] = Field(default_factory=list, max_length=10)
    """Artifact URIs of the same organization."""

    _addresses = field_validator("to", "cc")(only_addresses)

    @field_validator("reply_to")
    @classmethod
    def _one_address(cls, value: str | None) -> str | None:
        if value is not None:
            only_addresses([value])
        return value


class EmailSent(Result):
    """What the mail server said."""

    message_id: str
    accepted: int
    refused: int = 0
    deferred: int = 0


@handles(EMAILS, "email.send", timeout=timedelta(seconds=30), max_attempts=5, provider="mail")
async def send_email(job: Job[SendEmail]) -> EmailSent:
    """Fill the template and hand the message to the mail provider.

    When the server takes the message for some recipients and puts others off, only those others get another
    job, so that nobody receives it twice.
    """
    email = job.payload
    content = render(email.template, email.variables)
    attachments = await asyncio.to_thread(_attachments, job.organization_id, email.attachments)
    mail = Mail(
        message_id=deterministic_id(job.organization_id, job.idempotency_key),
        subject=content.subject,
        text=content.text,
        html=content.html,
        to=tuple(email.to),
        cc=tuple(email.cc),
        reply_to=email.reply_to,
        attachments=attachments,
    )
    receipt = await mail_provider().send(job.organization_id, mail)
    if receipt.deferred:
        later = email.model_copy(update={"to": list(receipt.deferred), "cc": []})
        job.follow_up(later, delay=GREYLISTED)
    return EmailSent(
        message_id=mail.message_id,
        accepted=len(mail.recipients) - len(receipt.refused) - len(receipt.deferred),
        refused=len(receipt.refused),
        deferred=len(receipt.deferred),
    )


def _attachments(organization_id: str, uris: list[str]) -> tuple[Attachment, ...]:
    store = artifacts()
    return tuple(
        Attachment.named(
            uri.rpartition("/")[2], store.read(organization_id, uri, max_bytes=LARGEST_ATTACHMENT_BYTES)
        )
        for uri in uris
    )


class BulkRecipient(Payload):
    """Who gets one copy of a bulk message, and what fills it beyond the variables of all."""

    to: str
    variables: dict[str, str] = Field(default_factory=dict)

    @field_validator("to")
    @classmethod
    def _one_address(cls, value: str) -> str:
        only_addresses([value])
        return value


class SendBulkEmail(Payload):
    """One template for many recipients, each with variables of their own."""

    template: str
    recipients: list[BulkRecipient] = Field(min_length=1, max_length=1000)
    variables: dict[str, str] = Field(default_factory=dict)
    reply_to: str | None = None
    attachments: list[str] = Field(default_factory=list, max_length=10)

    @field_validator("reply_to")
    @classmethod
    def _one_address(cls, value: str | None) -> str | None:
        if value is not None:
            only_addresses([value])
        return value


class BulkQueued(Result):
    """How many messages were queued."""

    queued: int


@handles(EMAILS, "email.send_bulk", timeout=timedelta(minutes=1), max_attempts=3)
def send_bulk_email(job: Job[SendBulkEmail]) -> BulkQueued:
    """Queue one `email.send` for each recipient; refuse all of them when one cannot be filled."""
    bulk = job.payload
    emails = [
        SendEmail(
            template=bulk.template,
            to=[recipient.to],
            variables={**bulk.variables, **recipient.variables},
            reply_to=bulk.reply_to,
            attachments=bulk.attachments,
        )
        for recipient in bulk.recipients
    ]
    for email in emails:
        render(email.template, email.variables)
    for email in emails:
        job.follow_up(email)
    return BulkQueued(queued=len(emails))
