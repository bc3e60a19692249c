"""The world outside the pipeline: a mail server and a receiver of webhooks, and what has reached them.

`python -m demo.outside ADDRESSES` runs both in a process of their own, so that they can stay when the
demonstration has ended, and writes where they are to the file ADDRESSES. `GET /mail` and `GET /webhooks` of
its third address, `inspect`, show what came; `POST /fail` and `POST /fix` change how the receiver answers.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event
from typing import Any, Self
from urllib.request import Request, urlopen

from demo.mailserver import MailServer, ReceivedMail
from demo.receiver import Receiver, serving

ANSWER_WITHIN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Outside:
    """Asks the process what has reached it."""

    smtp: str
    webhooks: str
    inspect: str

    @classmethod
    def at(cls, addresses: Path) -> Self:
        """Return the one whose addresses are in a file; raises OSError while it is not there."""
        return cls(**json.loads(addresses.read_text()))

    def url(self, organization_id: str, name: str) -> str:
        """Return where an organization's events go; each name is a path that can fail on its own."""
        return f"{self.webhooks}/{organization_id}/{name}"

    def mail(self) -> list[dict[str, Any]]:
        """Return every message that came: id, to, subject, and attachments with name, size and first bytes."""
        answer: list[dict[str, Any]] = self._ask("/mail")
        return answer

    def webhooks_taken(self) -> dict[str, Any]:
        """Return the genuine `events`, how many were `forged`, and the number of `requests` to each path."""
        answer: dict[str, Any] = self._ask("/webhooks")
        return answer

    def fail(self, organization_id: str, name: str, status: int, times: int | None = None) -> None:
        """Answer the next `times` requests to a path with a status; without `times`, all until `fix`."""
        self._ask("/fail", {"organization": organization_id, "name": name, "status": status, "times": times})

    def fix(self, organization_id: str, name: str) -> None:
        """Take events at a path again."""
        self._ask("/fix", {"organization": organization_id, "name": name})

    def _ask(self, path: str, told: dict[str, Any] | None = None) -> Any:
        data = None if told is None else json.dumps(told).encode()
        with urlopen(Request(self.inspect + path, data), timeout=ANSWER_WITHIN_SECONDS) as answer:
            return json.load(answer)


def _mail(message: ReceivedMail) -> dict[str, Any]:
    attachments = []
    for part in message.message.iter_attachments():
        content = part.get_content()
        attachments.append(
            {"name": part.get_filename(), "bytes": len(content), "starts": content[:4].decode("latin-1")}
        )
    return {
        "id": message.message["Message-ID"],
        "to": list(message.recipients),
        "subject": message.message["Subject"],
        "attachments": attachments,
    }


def _inspector(mail: MailServer, receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    def fail(told: dict[str, Any]) -> None:
        receiver.fail(told["organization"], told["name"], status=told["status"], times=told["times"])

    answers: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
        ("GET", "/mail"): lambda _: [_mail(message) for message in mail.received],
        ("GET", "/webhooks"): lambda _: {
            "events": [
                {"path": event.path, "id": event.id, "type": event.type, "data": event.data}
                for event in receiver.events
            ],
            "forged": receiver.forged,
            "requests": receiver.requests,
        },
        ("POST", "/fail"): fail,
        ("POST", "/fix"): lambda told: receiver.fix(told["organization"], told["name"]),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            answer = answers.get((self.command, self.path))
            known = ", ".join(" ".join(one) for one in answers)
            body = answer(told) if answer else {"error": f"expected one of {known}"}
            content = json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"
            self.send_response(200 if answer else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: what is told is what matters."""

    return Handler


def main(addresses: Path) -> None:
    """Serve until SIGTERM."""
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    with (
        MailServer() as mail,
        Receiver(os.environ["WEBHOOK_SIGNING_KEY"]) as receiver,
        serving(_inspector(mail, receiver)) as inspect,
    ):
        told = {"smtp": mail.url, "webhooks": receiver.address, "inspect": inspect}
        unfinished = addresses.with_suffix(".new")
        unfinished.write_text(json.dumps(told))
        unfinished.replace(addresses)
        stopped.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
