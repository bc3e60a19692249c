"""Outgoing webhooks against a real receiver."""

import asyncio
import gzip
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import certifi
import pytest
import trustme

from demo.receiver import Receiver, serving
from providers.errors import RateLimited, Refused, Unavailable
from providers.webhooks import delivery, event_body, post

KEY = "a signing key of thirty-two characters or more"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("WEBHOOK_SIGNING_KEY", KEY)
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "1")
    with Receiver(KEY) as running:
        yield running


async def send(url: str, organization_id: str = "acme", data: Any = None) -> int:
    now = datetime.now(UTC)
    body = event_body("invoice.paid", now, data or {"id": "1 €"})
    return await post(url, body, organization_id=organization_id, message_id="job-1", sent_at=now)


async def test_an_event_arrives_verified(receiver: Receiver) -> None:
    assert await send(receiver.url("acme", "events")) == 200
    (event,) = receiver.events
    assert (event.organization_id, event.id, event.type, event.data) == (
        "acme",
        "job-1",
        "invoice.paid",
        {"id": "1 €"},
    )


async def test_an_event_of_another_organization_is_a_forgery(receiver: Receiver) -> None:
    with pytest.raises(Unavailable, match="401"):
        await send(receiver.url("acme", "events"), "globex")
    assert receiver.forged == 1
    assert receiver.events == ()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, Refused), (307, Refused), (400, Refused), (404, Refused), (410, Refused),
        (408, Unavailable), (425, Unavailable), (500, Unavailable), (503, Unavailable),
    ],
)  # fmt: skip
async def test_statuses(receiver: Receiver, status: int, kind: type[Exception]) -> None:
    elsewhere = {"Location": receiver.url("acme", "elsewhere")}
    receiver.fail("acme", "events", status=status, times=1, headers=elsewhere)
    with pytest.raises(kind, match=str(status)):
        await send(receiver.url("acme", "events"))
    assert receiver.attempts("acme", "elsewhere") == 0
    assert await send(receiver.url("acme", "events")) == 200


async def test_a_limited_receiver_says_when_to_come_back(receiver: Receiver) -> None:
    receiver.fail("acme", "events", status=429, times=1, headers={"Retry-After": "11"})
    with pytest.raises(RateLimited) as limited:
        await send(receiver.url("acme", "events"))
    assert limited.value.retry_after == timedelta(seconds=11)


async def test_without_leave_nothing_inside_is_reached(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEBHOOK_ALLOW_PRIVATE")
    port = receiver.url("acme", "events").split(":")[2].split("/")[0]
    for host in (
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "[::ffff:127.0.0.1]",
        "[::1]",
    ):
        with pytest.raises(Refused, match="public internet"):
            await send(f"http://{host}:{port}/acme/events")
    assert receiver.attempts("acme", "events") == 0


async def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is looked up again could answer differently; this one cannot be looked up at all."""
    asked: list[str] = []

    async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
        asked.append(host)
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(delivery, "resolve", resolve)
    url = receiver.url("acme", "events").replace("127.0.0.1", "rebinding.invalid")
    assert await send(url) == 200
    assert asked == ["rebinding.invalid"]


class Recording(BaseHTTPRequestHandler):
    """Remembers the headers of the last request, and answers with `content`."""

    seen: dict[str, str]
    content = b""
    headers_out: dict[str, str]

    def do_POST(self) -> None:
        type(self).seen = dict(self.headers.items())
        self.send_response(200)
        for name, value in getattr(self, "headers_out", {}).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(self.content)
        except ConnectionError:
            # What the sender does when it has read enough.
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


async def test_the_receiver_sees_the_name_and_no_proxy_is_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(Recording) as url:
        port = url.rpartition(":")[2]
        await send(f"http://localhost:{port}/hook?token=1")
    assert Recording.seen["host"] == f"localhost:{port}"
    assert {"webhook-id", "webhook-timestamp", "webhook-signature"} <= set(Recording.seen)


@pytest.mark.parametrize("packed", [False, True])
async def test_an_endless_answer_is_read_to_a_bound(receiver: Receiver, packed: bool) -> None:
    class Endless(Recording):
        content = gzip.compress(b"0" * 50_000_000) if packed else b"0" * 20_000_000
        headers_out = {"content-encoding": "gzip"} if packed else {}

    with serving(Endless) as url:
        assert await send(url) == 200


async def test_a_receiver_that_never_answers_is_given_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "DEADLINE", timedelta(seconds=0.3))
    release = threading.Event()

    class Dripping(Recording):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not release.wait(0.05):
                try:
                    self.wfile.write(b"x")
                except ConnectionError:
                    return

    with serving(Dripping) as url:
        with pytest.raises(Unavailable, match="within"):
            await send(url + "/secret-token")
        release.set()


async def test_no_receiver_is_unavailable_and_the_path_stays_secret(receiver: Receiver) -> None:
    with pytest.raises(Unavailable) as unavailable:
        await send("http://127.0.0.1:9/secret-token?key=secret")
    assert "127.0.0.1" in str(unavailable.value)
    assert "secret" not in str(unavailable.value)


async def test_what_is_no_http_is_unavailable(receiver: Receiver) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await send(f"http://127.0.0.1:{port}/")


async def test_an_https_url_that_speaks_no_tls_gets_no_event(receiver: Receiver) -> None:
    with pytest.raises(Unavailable):
        await send(receiver.url("acme", "events").replace("http:", "https:"))
    assert receiver.attempts("acme", "events") == 0


@pytest.mark.parametrize(("host", "trusted"), [("hooks.acme.example", True), ("other.acme.example", False)])
async def test_the_certificate_must_be_the_names_though_the_connection_is_to_an_address(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, trusted: bool
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setattr(certifi, "where", lambda: str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.acme.example").configure_cert(context)
    asked_for: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked_for.append(name)

    async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
        return ["127.0.0.1"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    monkeypatch.setattr(delivery, "resolve", resolve)
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        url = f"https://{host}:{server.sockets[0].getsockname()[1]}/"
        if trusted:
            assert await send(url) == 204
        else:
            with pytest.raises(Unavailable):
                await send(url)
    assert asked_for == [host]
