"""QuickBooks Online against a local server that speaks its query API."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from demo.receiver import serving
from providers import quickbooks
from providers.artifacts import FolderArtifacts
from providers.errors import RateLimited, Refused, Unavailable
from providers.quickbooks.online import QuickBooksOnline
from providers.records import RecordStore, synchronise

TOKEN = "canary-token"
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)
QUERY = re.compile(
    r"SELECT \* FROM (?P<entity>\w+)( WHERE MetaData\.LastUpdatedTime >= '(?P<since>[^']+)')?"
    r" ORDERBY Id STARTPOSITION (?P<start>\d+) MAXRESULTS (?P<most>\d+)"
)


@dataclass
class Company:
    """One company's invoices; `answers` are given first, one a request."""

    changed: dict[str, datetime] = field(default_factory=dict)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        parameters = parse_qs(parts.query)
        if authorization != f"Bearer {TOKEN}":
            return 401, {}, b'{"Fault": {"type": "AUTHENTICATION"}}'
        if parts.path != "/v3/company/42/query" or parameters["minorversion"] != ["75"]:
            return 404, {}, b""
        (query,) = parameters["query"]
        self.queries.append(query)
        if self.answers:
            return self.answers.pop(0)
        wanted = QUERY.fullmatch(query)
        if wanted is None:
            return 400, {}, b'{"Fault": {"type": "ValidationFault"}}'
        since = (
            datetime.fromisoformat(wanted["since"]) if wanted["since"] else datetime.min.replace(tzinfo=UTC)
        )
        ids = sorted(name for name, at in self.changed.items() if at >= since)
        start, most = int(wanted["start"]) - 1, int(wanted["most"])
        page = [
            {"Id": name, "MetaData": {"LastUpdatedTime": self.changed[name].isoformat()}}
            for name in ids[start : start + most]
        ]
        found: dict[str, Any] = {wanted["entity"]: page, "startPosition": start + 1} if page else {}
        return 200, {}, json.dumps({"QueryResponse": found, "time": NOW.isoformat()}).encode()


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    company = Company({f"{n:03}": NOW - timedelta(days=n + 1) for n in range(25)})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = company.answer(self.path, self.headers["authorization"])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as url:
        monkeypatch.setenv("QUICKBOOKS_URL", url)
        connections = {"acme": {"realmId": "42", "accessToken": TOKEN}}
        monkeypatch.setenv("QUICKBOOKS_CONNECTIONS", json.dumps(connections))
        yield company


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path)


def test_pages_are_read_to_the_end_and_then_only_changes(
    company: Company, artifacts: FolderArtifacts
) -> None:
    store = RecordStore(artifacts, "acme", "quickbooks")
    with QuickBooksOnline(os.environ["QUICKBOOKS_URL"], "42", TOKEN, max_results=10) as source:
        first = synchronise(source, store, "Invoice")
        assert (first.read, first.written, first.up_to, len(company.queries)) == (25, 25, NOW, 3)
        company.changed["003"] = NOW + timedelta(minutes=1)
        again = synchronise(source, store, "Invoice")
    assert (again.read, again.written) == (1, 1)
    assert company.queries[-1].split("'")[1] == "2026-04-15T11:59:00+00:00"


def test_a_page_exactly_full_is_followed_by_an_empty_one(company: Company) -> None:
    with QuickBooksOnline(os.environ["QUICKBOOKS_URL"], "42", TOKEN, max_results=25) as source:
        assert [len(page.records) for page in source.pages("Invoice", None)] == [25, 0]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, {}, b""), Refused),
        ((403, {}, b""), Unavailable),
        ((500, {}, b""), Unavailable),
        ((503, {}, b""), Unavailable),
        ((200, {}, b"<html>maintenance</html>"), Unavailable),
        ((200, {}, b"[]"), Unavailable),
        ((200, {}, b'{"QueryResponse": {"Invoice": [{}]}, "time": "2026-04-15T12:00:00Z"}'), Unavailable),
        ((200, {}, b'{"QueryResponse": {}}'), Unavailable),
    ],
)
def test_refusals(
    company: Company,
    artifacts: FolderArtifacts,
    answer: tuple[int, dict[str, str], bytes],
    kind: type[Exception],
) -> None:
    company.answers = [answer]
    with pytest.raises(kind) as raised, quickbooks.source(artifacts, "acme", None) as source:
        list(source.pages("Invoice", None))
    assert TOKEN not in str(raised.value)


def test_a_limit_between_pages_says_when_and_the_next_run_completes(
    company: Company, artifacts: FolderArtifacts
) -> None:
    store = RecordStore(artifacts, "acme", "quickbooks")
    company.answers = [(429, {"Retry-After": "60"}, b"")]
    with pytest.raises(RateLimited) as limited, quickbooks.source(artifacts, "acme", None) as source:
        synchronise(source, store, "Invoice")
    assert limited.value.retry_after == timedelta(minutes=1)
    assert store.cursor("Invoice") is None
    with quickbooks.source(artifacts, "acme", None) as source:
        assert synchronise(source, store, "Invoice").written == 25


def test_an_expired_token_can_be_renewed_and_is_never_shown(
    company: Company, artifacts: FolderArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = {"acme": {"realmId": "42", "accessToken": "expired-canary"}}
    monkeypatch.setenv("QUICKBOOKS_CONNECTIONS", json.dumps(connections))
    with (
        pytest.raises(Unavailable, match="401") as refused,
        quickbooks.source(artifacts, "acme", None) as source,
    ):
        list(source.pages("Invoice", None))
    assert "canary" not in str(refused.value)


def test_no_server_is_unavailable(
    company: Company, artifacts: FolderArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICKBOOKS_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable), quickbooks.source(artifacts, "acme", None) as source:
        list(source.pages("Invoice", None))
