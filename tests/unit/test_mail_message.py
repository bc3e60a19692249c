"""Messages: no part can forge a header, and repeats can be recognised."""

from email import message_from_bytes
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.errors import Refused
from providers.mail import Attachment, Mail, deterministic_id, is_address, mail_provider
from providers.mail.folder import FolderMail
from providers.mail.message import mime
from providers.mail.smtp import SmtpMail


def mail(**changes: object) -> Mail:
    fields: dict[str, object] = {
        "message_id": "<1@localhost>", "subject": "Hello", "text": "Hi\n", "html": None, "to": ("ada@acme.example",),
    }  # fmt: skip
    return Mail(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "address", ["a@b", "ada.l+x@acme.example", "o'brien@acme.example", "ada@bücher.example"]
)
def test_addresses(address: str) -> None:
    assert is_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "a", "@b", "a@", "a b@c", "a@b\n", "a@b\r\nBcc: x@y", "a@b,c@d", "A <a@b>", '"a"@b', "a@b;c", "a@[::1]",
        "a@b\x00", "a@b\u2028c", "x" * 65 + "@b",
    ],
)  # fmt: skip
def test_no_addresses(address: str) -> None:
    assert not is_address(address)


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "a\nBcc: x@y.z"}, {"subject": "a\rb"}, {"subject": "a\x00"}, {"to": ("a@b\nBcc: c@d",)},
        {"cc": ("a@b, c@d",)}, {"reply_to": "a@b\r\nX: y"}, {"to": ()},
        {"attachments": (Attachment('a"\r\nX: y.pdf', b"", "application/pdf"),)},
    ],
)  # fmt: skip
def test_what_could_forge_a_header_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(Refused):
        mail(**changes)


@given(subject=st.text(max_size=60), name=st.text(max_size=30))
def test_whatever_is_accepted_adds_no_header_and_arrives_as_written(subject: str, name: str) -> None:
    try:
        written = mail(subject=subject, attachments=(Attachment(name, b"x", "application/pdf"),))
    except Refused:
        return
    read = message_from_bytes(mime(written).as_bytes(), policy=default)
    assert sorted(read.keys()) == sorted(
        ["From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    )
    assert str(read["Subject"]).split() == subject.split()


def test_the_message_id_is_the_same_for_repeats_and_differs_between_organizations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAIL_FROM", "books@acme.example")
    first = deterministic_id("acme", "key")
    assert first == deterministic_id("acme", "key")
    assert first.endswith("@acme.example>")
    assert len({first, deterministic_id("acme", "other"), deterministic_id("globex", "key")}) == 3


def test_a_recipient_named_twice_counts_once() -> None:
    assert mail(to=("a@b", "a@b"), cc=("a@b", "c@d")).recipients == ("a@b", "c@d")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "MAIL_PROVIDER",
        "SMTP_URL",
        "SMTP_HOST",
        "SMTP_PORT",
        "SMTP_TLS",
        "SMTP_USER",
        "SMTP_PASSWORD",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_folder_needs_no_setting_and_smtp_only_a_server(environment: pytest.MonkeyPatch) -> None:
    assert isinstance(mail_provider(), FolderMail)
    environment.setenv("SMTP_HOST", "mail.acme.example")
    assert mail_provider() == SmtpMail("mail.acme.example", 587, "starttls")
    environment.setenv("MAIL_PROVIDER", "folder")
    assert isinstance(mail_provider(), FolderMail)
    environment.setenv("MAIL_PROVIDER", "pigeon")
    with pytest.raises(Refused, match="folder, smtp or sendgrid"):
        mail_provider()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", SmtpMail("mail.example", 587, "starttls")),
        ("smtps://u%40x:p%2Fw@mail.example", SmtpMail("mail.example", 465, "tls", "u@x", "p/w")),
        ("smtp://localhost:1025", SmtpMail("localhost", 1025, "none")),
        ("smtp://mail.example:26?tls=none", SmtpMail("mail.example", 26, "none")),
    ],
)
def test_smtp_urls(environment: pytest.MonkeyPatch, url: str, expected: SmtpMail) -> None:
    environment.setenv("SMTP_URL", url)
    assert mail_provider() == expected


def test_wrong_smtp_settings_are_named_without_their_secrets(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SMTP_URL", "http://user:hunter2@mail.example")
    with pytest.raises(Refused, match="SMTP_URL") as refused:
        mail_provider()
    assert "hunter2" not in str(refused.value)
    environment.setenv("SMTP_URL", "smtp://user:hunter2@mail.example?tls=maybe")
    with pytest.raises(Refused, match="SMTP_TLS"):
        mail_provider()
    assert "hunter2" not in repr(SmtpMail("h", 1, "none", "user", "hunter2"))
