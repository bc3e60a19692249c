"""Messages handed to SendGrid by its HTTP API, version 3."""

import base64
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from providers.errors import Unavailable
from providers.http import secret, status_error
from providers.mail.message import Mail, Receipt, sender

TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class SendGridMail:
    """`POST /v3/mail/send`. SendGrid takes a message for every recipient or for none."""

    url: str
    api_key: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """Read SENDGRID_API_KEY and SENDGRID_URL."""
        url = os.environ.get("SENDGRID_URL") or "https://api.sendgrid.com"
        return cls(url.rstrip("/"), secret("SENDGRID_API_KEY"))

    async def send(self, organization_id: str, mail: Mail) -> Receipt:
        """Hand over one message."""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
                answer = await client.post(
                    f"{self.url}/v3/mail/send",
                    json=_body(mail),
                    headers={"Authorization": f"Bearer {self.api_key}"},
                )
        except httpx.TransportError as error:
            raise Unavailable(f"SendGrid did not answer: {type(error).__name__}", host="SendGrid") from None
        now = datetime.now(UTC)
        if failure := status_error("SendGrid", answer.status_code, _headers(answer, now), now):
            raise failure
        return Receipt()


def _headers(answer: httpx.Response, now: datetime) -> dict[str, str]:
    """Return the answer's headers; SendGrid says when its limit ends in a header of its own (a Unix time)."""
    headers = dict(answer.headers)
    reset = headers.get("x-ratelimit-reset", "")
    if "retry-after" not in headers and reset.isdigit():
        headers["retry-after"] = str(max(0, int(reset) - int(now.timestamp())))
    return headers


def _body(mail: Mail) -> dict[str, Any]:
    to = list(dict.fromkeys(mail.to))
    # SendGrid refuses an address that is both in `to` and in `cc`.
    cc = [address for address in dict.fromkeys(mail.cc) if address not in to]
    personalization: dict[str, Any] = {"to": [{"email": address} for address in to]}
    if cc:
        personalization["cc"] = [{"email": address} for address in cc]
    headers = {"Message-ID": mail.message_id, "Auto-Submitted": "auto-generated"}
    if mail.urgent:
        headers |= {"X-Priority": "1", "Importance": "high"}
    content = [{"type": "text/plain", "value": mail.text}]
    if mail.html is not None:
        content.append({"type": "text/html", "value": mail.html})
    body: dict[str, Any] = {
        "personalizations": [personalization],
        "from": {"email": sender()},
        "subject": mail.subject,
        "headers": headers,
        "content": content,
    }
    if mail.reply_to:
        body["reply_to"] = {"email": mail.reply_to}
    if mail.attachments:
        body["attachments"] = [
            {
                "content": base64.b64encode(attachment.content).decode("ascii"),
                "type": attachment.media_type,
                "filename": attachment.name,
            }
            for attachment in mail.attachments
        ]
    return body
