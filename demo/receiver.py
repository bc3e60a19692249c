"""A receiver of webhooks that verifies them, for the demonstration and for tests."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote

from standardwebhooks import Webhook, WebhookVerificationError

from providers.webhooks import secret_of


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """Connections that may wait to be taken; the library's 5 are too few for a worker's fifteen at once."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve HTTP on a free port of this machine and give the URL without a path."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One genuine event that was taken."""

    path: str
    organization_id: str
    id: str
    type: str
    data: Any


@dataclass(slots=True)
class _Failure:
    status: int
    headers: Mapping[str, str]
    times: float


@dataclass(slots=True)
class _Record:
    events: list[ReceivedEvent] = field(default_factory=list)
    forged: int = 0
    attempts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, _Failure] = field(default_factory=dict)


class Receiver:
    """Takes signed events at `/<organization>/<name>`; what is not signed by that organization is refused.

    It can be told to fail a path some times, or until it is fixed.
    """

    def __init__(self, signing_key: str) -> None:
        self._signing_key = signing_key
        self._record = _Record()
        self._changed = threading.Condition()
        self._serving = serving(self._handler())
        self._url = ""

    def __enter__(self) -> Self:
        self._url = self._serving.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.__exit__(kind, error, trace)

    @property
    def address(self) -> str:
        """Where it listens: a URL without a path."""
        return self._url

    def url(self, organization_id: str, name: str) -> str:
        """Return where an organization's events go; each name is a path that can fail on its own."""
        return f"{self._url}{_path(organization_id, name)}"

    def fail(
        self,
        organization_id: str,
        name: str,
        *,
        status: int,
        times: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer the next `times` requests with a status; without `times`, all until `fix`."""
        wanted = _Failure(status, headers or {}, float("inf") if times is None else times)
        with self._changed:
            self._record.failures[_path(organization_id, name)] = wanted

    def fix(self, organization_id: str, name: str) -> None:
        """Take events again."""
        with self._changed:
            self._record.failures.pop(_path(organization_id, name), None)

    @property
    def events(self) -> tuple[ReceivedEvent, ...]:
        """Every event taken so far, repeats included."""
        with self._changed:
            return tuple(self._record.events)

    @property
    def forged(self) -> int:
        """How many requests were refused because their signature did not fit."""
        with self._changed:
            return self._record.forged

    @property
    def requests(self) -> dict[str, int]:
        """How many requests each path has had, failed ones included."""
        with self._changed:
            return dict(self._record.attempts)

    def attempts(self, organization_id: str, name: str) -> int:
        """How many requests one path has had, failed ones included."""
        return self.requests.get(_path(organization_id, name), 0)

    def wait_for(self, reached: Callable[[tuple[ReceivedEvent, ...]], bool], timeout: timedelta) -> bool:
        """Wait until the events taken satisfy the condition; return False when the time is up."""
        with self._changed:
            return self._changed.wait_for(
                lambda: reached(tuple(self._record.events)), timeout.total_seconds()
            )

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        with self._changed:
            self._record.attempts[path] = self._record.attempts.get(path, 0) + 1
            failure = self._record.failures.get(path)
            if failure is not None and failure.times > 0:
                failure.times -= 1
                return failure.status, failure.headers
            organization_id = unquote(path.split("/")[1])
            try:
                event = Webhook(secret_of(organization_id, self._signing_key)).verify(body, headers)
            except (WebhookVerificationError, ValueError):
                self._record.forged += 1
                return 401, {}
            self._record.events.append(
                ReceivedEvent(path, organization_id, headers["webhook-id"], event["type"], event["data"])
            )
            self._changed.notify_all()
            return 200, {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                given = {name.lower(): value for name, value in self.headers.items()}
                status, headers = receiver._answer(self.path, given, body)
                content = json.dumps({"taken": status == 200}).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the events are the record."""

        return Handler


def _path(organization_id: str, name: str) -> str:
    return f"/{quote(organization_id, safe='')}/{quote(name, safe='')}"
