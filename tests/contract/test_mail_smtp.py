"""SMTP against a real server: what arrives, and what each refusal becomes."""

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from demo.mailserver import MailServer
from providers.errors import Refused, Unavailable
from providers.mail import Attachment, Mail, Receipt, mail_provider

SOON = timedelta(seconds=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    for name in ("MAIL_PROVIDER", "SMTP_HOST", "MAIL_FROM"):
        monkeypatch.delenv(name, raising=False)
    with MailServer() as running:
        monkeypatch.setenv("SMTP_URL", running.url)
        yield running


def mail(*to: str, subject: str = "Grüße") -> Mail:
    return Mail(
        message_id="<1@localhost>", subject=subject, text="Hallo Ädä\n.\nEnde\n", html="<p>Hallo Ädä</p>",
        to=to or ("ada@acme.example",), cc=("bo@acme.example",),
        attachments=(Attachment.named("q1.pdf", b"%PDF-\x00\xff"),),
    )  # fmt: skip


async def test_a_message_arrives_as_it_was_written(server: MailServer) -> None:
    assert await mail_provider().send("acme", mail()) == Receipt()
    assert server.wait_for(lambda received: len(received) == 1, SOON)
    (received,) = server.received
    assert received.sender == "no-reply@localhost"
    assert received.recipients == ("ada@acme.example", "bo@acme.example")
    message = received.message
    assert message["Subject"] == "Grüße"
    assert message["Message-ID"] == "<1@localhost>"
    assert message["Date"]
    text = message.get_body(("plain",))
    assert text is not None
    assert text.get_content().splitlines() == ["Hallo Ädä", ".", "Ende"]
    (attachment,) = message.iter_attachments()
    assert attachment.get_content() == b"%PDF-\x00\xff"


async def test_an_international_address_arrives(server: MailServer) -> None:
    await mail_provider().send("acme", mail("ada@bücher.example"))
    assert server.received[0].recipients[0] == "ada@bücher.example"


async def test_some_recipients_refused_and_some_put_off(server: MailServer) -> None:
    server.answers = {"x@acme.example": "550 no such user", "y@acme.example": "450 try later"}
    receipt = await mail_provider().send("acme", mail("w@acme.example", "x@acme.example", "y@acme.example"))
    assert receipt == Receipt(refused=("x@acme.example",), deferred=("y@acme.example",))
    assert server.received[0].recipients == ("w@acme.example", "bo@acme.example")


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("550 no", "550 no", Refused),
        ("450 later", "450 later", Unavailable),
        ("550 no", "451 later", Unavailable),
        ("421 closing", "421 closing", Unavailable),
    ],
)
async def test_when_nobody_is_accepted(
    server: MailServer, first: str, second: str, kind: type[Exception]
) -> None:
    server.answers = {"ada@acme.example": first, "bo@acme.example": second}
    with pytest.raises(kind):
        await mail_provider().send("acme", mail())
    assert server.received == ()


async def test_no_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{port}?tls=none")
    with pytest.raises(Unavailable, match=str(port)):
        await mail_provider().send("acme", mail())


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [
        (b"", Unavailable),
        (b"421 busy\r\n", Unavailable),
        (b"554 go away\r\n", Refused),
        (b"\xff\n", Unavailable),
    ],
)
async def test_a_server_that_does_not_welcome_us(
    monkeypatch: pytest.MonkeyPatch, greeting: bytes, kind: type[Exception]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(greeting)

        thread = threading.Thread(target=greet)
        thread.start()
        monkeypatch.setenv("SMTP_URL", f"smtp://127.0.0.1:{listener.getsockname()[1]}?tls=none")
        with pytest.raises(kind):
            await mail_provider().send("acme", mail())
        thread.join()


async def test_a_server_without_starttls_is_not_spoken_to_in_the_clear(
    server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTP_URL", f"smtp://user:hunter2@127.0.0.1:{server.port}?tls=starttls")
    with pytest.raises(Unavailable, match="STARTTLS") as unavailable:
        await mail_provider().send("acme", mail())
    assert "hunter2" not in str(unavailable.value)
    assert server.received == ()
