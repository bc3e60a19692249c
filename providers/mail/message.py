"""A message, and how it becomes the bytes that a mail server takes."""

import hashlib
import mimetypes
import os
import re
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP, EmailPolicy
from typing import Self

from providers.errors import Refused

# Deliberately narrower than RFC 5321: no quoted local parts, no address literals, nothing that could end a
# header or start another address.
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[^\s@<>,;:\"()\[\]\\\x00-\x20\x7f]{1,253}")


def is_address(value: str) -> bool:
    """Return whether the text is a bare `local@domain` that is safe in a header."""
    return _ADDRESS.fullmatch(value) is not None and value.isprintable()


def sender() -> str:
    """Return the address that messages come from: MAIL_FROM, or `no-reply@localhost`."""
    address = os.environ.get("MAIL_FROM", "no-reply@localhost")
    if not is_address(address):
        raise Refused(f"MAIL_FROM must be a bare address local@domain, got {address!r}")
    return address


def deterministic_id(organization_id: str, idempotency_key: str) -> str:
    """Return the Message-ID that every attempt at one job has, so that a repeat can be recognised."""
    digest = hashlib.sha256(f"{organization_id}\0{idempotency_key}".encode()).hexdigest()[:40]
    return f"<{digest}@{sender().rpartition('@')[2]}>"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with a message."""

    name: str
    content: bytes
    media_type: str

    @classmethod
    def named(cls, name: str, content: bytes) -> Self:
        """Return an attachment whose media type follows from its name."""
        return cls(name, content, mimetypes.guess_type(name)[0] or "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Mail:
    """One message, all but its sender. Raises Refused when one of its parts could forge a header."""

    message_id: str
    subject: str
    text: str
    html: str | None
    to: tuple[str, ...]
    cc: tuple[str, ...] = ()
    reply_to: str | None = None
    attachments: tuple[Attachment, ...] = ()
    urgent: bool = False

    def __post_init__(self) -> None:
        if not self.to:
            raise Refused("a message needs a recipient")
        for address in (*self.recipients, *([self.reply_to] if self.reply_to else [])):
            if not is_address(address):
                raise Refused("an address must be a bare local@domain on one line")
        if not self.subject.isprintable():
            raise Refused("the subject must be one line of printable text")
        if not all(attachment.name.isprintable() for attachment in self.attachments):
            raise Refused("the name of an attachment must be one line of printable text")

    @property
    def recipients(self) -> tuple[str, ...]:
        """Everyone who gets the message, each once."""
        return tuple(dict.fromkeys((*self.to, *self.cc)))


@dataclass(frozen=True, slots=True)
class Receipt:
    """Whom a message was not taken for, though it was for others: never (`refused`) or not yet (`deferred`)."""

    refused: tuple[str, ...] = ()
    deferred: tuple[str, ...] = ()


def mime(mail: Mail, policy: "EmailPolicy[EmailMessage]" = SMTP) -> EmailMessage:
    """Return the message in MIME form: text and HTML alternatives, then attachments."""
    message = EmailMessage(policy)
    message["From"] = sender()
    message["To"] = ", ".join(mail.to)
    if mail.cc:
        message["Cc"] = ", ".join(mail.cc)
    if mail.reply_to:
        message["Reply-To"] = mail.reply_to
    message["Subject"] = mail.subject
    message["Message-ID"] = mail.message_id
    # RFC 3834: automatic answers must not answer this.
    message["Auto-Submitted"] = "auto-generated"
    if mail.urgent:
        message["X-Priority"] = "1"
        message["Importance"] = "high"
    message.set_content(mail.text)
    if mail.html is not None:
        message.add_alternative(mail.html, subtype="html")
    for attachment in mail.attachments:
        maintype, _, subtype = attachment.media_type.partition("/")
        message.add_attachment(
            attachment.content, maintype=maintype, subtype=subtype, filename=attachment.name
        )
    return message
