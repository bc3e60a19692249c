"""A mail server that keeps what it receives, for the demonstration and for tests."""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Self, cast

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One message as the server took it."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage


class MailServer:
    """Speaks SMTP on a free port of this machine.

    `answers` maps a recipient to the line the server answers `RCPT TO` with, such as `550 no such user`.
    """

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.answers = answers or {}
        self._received: list[ReceivedMail] = []
        self._arrived = threading.Condition()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._server = _Listening(self, listener)

    @property
    def url(self) -> str:
        """What SMTP_URL must be for this server to be used."""
        return f"smtp://127.0.0.1:{self.port}?tls=none"

    @property
    def received(self) -> tuple[ReceivedMail, ...]:
        """Every message so far, in the order of arrival."""
        with self._arrived:
            return tuple(self._received)

    def wait_for(self, reached: Callable[[tuple[ReceivedMail, ...]], bool], timeout: timedelta) -> bool:
        """Wait until the received messages satisfy the condition; return False when the time is up."""
        with self._arrived:
            return self._arrived.wait_for(lambda: reached(tuple(self._received)), timeout.total_seconds())

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer one recipient; aiosmtpd calls this by its name."""
        answer = self.answers.get(address)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep one message; aiosmtpd calls this by its name."""
        message = message_from_bytes(cast(bytes, envelope.content), policy=default)
        with self._arrived:
            self._received.append(ReceivedMail(envelope.mail_from or "", tuple(envelope.rcpt_tos), message))
            self._arrived.notify_all()
        return "250 kept"


class _Listening(Controller):
    """Serves on a socket that is bound already, so that the port is known and nobody can take it."""

    def __init__(self, handler: MailServer, listener: socket.socket) -> None:
        super().__init__(handler, hostname="127.0.0.1", port=listener.getsockname()[1], enable_SMTPUTF8=True)
        self._listener = listener

    def _create_server(self):  # type: ignore[no-untyped-def]
        return self.loop.create_server(self._factory_invoker, sock=self._listener)
