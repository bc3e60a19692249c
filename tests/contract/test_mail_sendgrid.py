"""SendGrid against a local server that speaks its API."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from demo.receiver import serving
from providers.errors import RateLimited, Refused, Unavailable
from providers.mail import Attachment, Mail, Receipt, mail_provider

KEY = "SG.canary-key"


@dataclass
class SendGrid:
    """Takes what the API documents; `answer` overrides status and headers."""

    answer: tuple[int, dict[str, str]] = (202, {})
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        sendgrid = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers = sendgrid.answer
                if self.headers["authorization"] != f"Bearer {KEY}":
                    status, headers = 401, {}
                elif self.path != "/v3/mail/send":
                    status, headers = 404, {}
                if status == 202:
                    sendgrid.bodies.append(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def sendgrid(monkeypatch: pytest.MonkeyPatch) -> Iterator[SendGrid]:
    server = SendGrid()
    monkeypatch.setenv("MAIL_PROVIDER", "sendgrid")
    monkeypatch.setenv("SENDGRID_API_KEY", KEY)
    monkeypatch.setenv("MAIL_FROM", "books@acme.example")
    with serving(server.handler()) as url:
        monkeypatch.setenv("SENDGRID_URL", url)
        yield server


MAIL = Mail(
    message_id="<1@acme.example>", subject="Grüße", text="Hi\n", html="<p>Hi</p>",
    to=("a@b.example", "a@b.example"), cc=("a@b.example", "c@b.example"), reply_to="r@b.example",
    attachments=(Attachment("q1.pdf", b"%PDF-", "application/pdf"),), urgent=True,
)  # fmt: skip


async def test_a_message_is_stated_as_the_api_documents_it(sendgrid: SendGrid) -> None:
    assert await mail_provider().send("acme", MAIL) == Receipt()
    (body,) = sendgrid.bodies
    assert body["personalizations"] == [{"to": [{"email": "a@b.example"}], "cc": [{"email": "c@b.example"}]}]
    assert body["from"] == {"email": "books@acme.example"}
    assert body["reply_to"] == {"email": "r@b.example"}
    assert [part["type"] for part in body["content"]] == ["text/plain", "text/html"]
    assert body["headers"]["Message-ID"] == "<1@acme.example>"
    (attachment,) = body["attachments"]
    assert base64.b64decode(attachment["content"]) == b"%PDF-"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (413, Refused), (500, Unavailable), (503, Unavailable)]
)
async def test_refusals(sendgrid: SendGrid, status: int, kind: type[Exception]) -> None:
    sendgrid.answer = (status, {})
    with pytest.raises(kind, match=str(status)):
        await mail_provider().send("acme", MAIL)


async def test_a_wrong_key_can_be_put_right_and_is_never_shown(
    sendgrid: SendGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDGRID_API_KEY", KEY + "-old")
    provider = mail_provider()
    with pytest.raises(Unavailable, match="401") as refused:
        await provider.send("acme", MAIL)
    assert "canary" not in str(refused.value) + repr(provider)
    monkeypatch.delenv("SENDGRID_API_KEY")
    with pytest.raises(Unavailable, match="SENDGRID_API_KEY is not set"):
        mail_provider()


async def test_both_headers_that_say_when_the_limit_ends(sendgrid: SendGrid) -> None:
    sendgrid.answer = (429, {"Retry-After": "7"})
    with pytest.raises(RateLimited) as limited:
        await mail_provider().send("acme", MAIL)
    assert limited.value.retry_after == timedelta(seconds=7)
    sendgrid.answer = (429, {"X-RateLimit-Reset": "1"})
    with pytest.raises(RateLimited) as limited:
        await mail_provider().send("acme", MAIL)
    assert limited.value.retry_after == timedelta(0)


async def test_no_server_is_unavailable(monkeypatch: pytest.MonkeyPatch, sendgrid: SendGrid) -> None:
    monkeypatch.setenv("SENDGRID_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        await mail_provider().send("acme", MAIL)
