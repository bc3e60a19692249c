"""E-mail: templates, and whatever hands a message over.

`MAIL_PROVIDER` is `folder` (messages become `.eml` artifacts; needs no server and no account), `smtp`, or
`sendgrid`. Without it, SMTP is used when SMTP_URL or SMTP_HOST is set, and the folder otherwise.
"""

import os
from typing import Protocol

from providers.errors import Refused
from providers.mail.message import Attachment, Mail, Receipt, deterministic_id, is_address
from providers.mail.templates import Content, render

__all__ = [
    "Attachment",
    "Content",
    "Mail",
    "MailProvider",
    "Receipt",
    "deterministic_id",
    "is_address",
    "mail_provider",
    "render",
]


class MailProvider(Protocol):
    """Whatever hands a message over."""

    async def send(self, organization_id: str, mail: Mail) -> Receipt:
        """Hand over one message; returns once it was taken for at least one recipient.

        Raises Unavailable, RateLimited, or Refused when it was taken for none.
        """
        ...


def mail_provider() -> MailProvider:
    """Return the mail provider that the environment chooses."""
    smtp_is_set = os.environ.get("SMTP_URL") or os.environ.get("SMTP_HOST")
    name = os.environ.get("MAIL_PROVIDER") or ("smtp" if smtp_is_set else "folder")
    if name == "folder":
        from providers.mail.folder import FolderMail

        return FolderMail()
    if name == "smtp":
        from providers.mail.smtp import SmtpMail

        return SmtpMail.from_environment()
    if name == "sendgrid":
        from providers.mail.sendgrid import SendGridMail

        return SendGridMail.from_environment()
    raise Refused(f"MAIL_PROVIDER must be folder, smtp or sendgrid, got {name!r}")
