"""Stripe's API against a local server that speaks it."""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from demo.receiver import serving
from providers import stripe
from providers.artifacts import FolderArtifacts
from providers.errors import RateLimited, Refused, Unavailable
from providers.records import RecordStore, synchronise
from providers.stripe.api import StripeApi

KEY = "sk_canary"
DAY = timedelta(days=1)
NOW = datetime(2026, 4, 15, 12, tzinfo=UTC)


@dataclass
class Account:
    """One account's charges; `answers` are given first, one a request."""

    charges: list[dict[str, Any]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[dict[str, list[str]]] = field(default_factory=list)

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(path)
        parameters = parse_qs(parts.query)
        basic = base64.b64encode(f"{KEY}:".encode()).decode()
        if headers["authorization"] != f"Basic {basic}" or headers["stripe-account"] != "acct_1":
            return 401, {}, b'{"error": {"message": "Invalid API Key provided"}}'
        if parts.path != "/v1/charges":
            return 404, {}, b""
        self.asked.append(parameters)
        if self.answers:
            return self.answers.pop(0)
        oldest = int(parameters.get("created[gte]", ["0"])[0])
        newest_first = sorted(self.charges, key=lambda charge: -charge["created"])
        matching = [charge for charge in newest_first if charge["created"] >= oldest]
        if after := parameters.get("starting_after"):
            place = [charge["id"] for charge in newest_first].index(after[0])
            matching = [charge for charge in newest_first[place + 1 :] if charge in matching]
        limit = int(parameters["limit"][0])
        page = {"object": "list", "data": matching[:limit], "has_more": len(matching) > limit}
        return 200, {}, json.dumps(page).encode()


def charge(number: int, at: datetime, **fields: Any) -> dict[str, Any]:
    return {"id": f"ch_{number}", "object": "charge", "created": int(at.timestamp()), **fields}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    account = Account([charge(number, NOW - number * DAY) for number in range(25)])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, content = account.answer(self.path, self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(Handler) as url:
        monkeypatch.setenv("STRIPE_URL", url)
        monkeypatch.setenv("STRIPE_CONNECTIONS", json.dumps({"acme": {"apiKey": KEY, "account": "acct_1"}}))
        yield account


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path)


def test_pages_are_read_to_the_end_and_then_what_is_new_or_may_have_changed(
    account: Account, artifacts: FolderArtifacts
) -> None:
    account.charges.append(charge(99, NOW - 90 * DAY))
    store = RecordStore(artifacts, "acme", "stripe")
    with StripeApi(os.environ["STRIPE_URL"], KEY, "acct_1", limit=10) as source:
        first = synchronise(source, store, "charges")
        assert (first.read, first.written, first.up_to, len(account.asked)) == (26, 26, NOW, 3)
        account.charges.append(charge(100, NOW + DAY))
        account.charges[20]["refunded"] = True
        again = synchronise(source, store, "charges")
    assert (again.read, again.written, again.up_to) == (26, 2, NOW + DAY)
    kept = store.get("charges", "ch_20")
    assert kept is not None
    assert kept["refunded"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((400, {}, b""), Refused),
        ((404, {}, b""), Refused),
        ((500, {}, b""), Unavailable),
        ((200, {}, b"oops"), Unavailable),
        ((200, {}, b'{"data": [{}], "has_more": false}'), Unavailable),
        ((200, {}, b'{"data": []}'), Unavailable),
        ((200, {}, b"[]"), Unavailable),
    ],
)
def test_refusals(
    account: Account,
    artifacts: FolderArtifacts,
    answer: tuple[int, dict[str, str], bytes],
    kind: type[Exception],
) -> None:
    account.answers = [answer]
    with pytest.raises(kind) as raised, stripe.source(artifacts, "acme", None) as source:
        list(source.pages("charges", None))
    assert KEY not in str(raised.value)


def test_a_limit_says_when_to_come_back(account: Account, artifacts: FolderArtifacts) -> None:
    account.answers = [(429, {"Retry-After": "3"}, b"")]
    with pytest.raises(RateLimited) as limited, stripe.source(artifacts, "acme", None) as source:
        list(source.pages("charges", None))
    assert limited.value.retry_after == timedelta(seconds=3)


def test_a_wrong_key_can_be_put_right_and_is_never_shown(
    account: Account, artifacts: FolderArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_CONNECTIONS", json.dumps({"acme": {"apiKey": "sk_old_canary"}}))
    with pytest.raises(Unavailable, match="401") as refused, stripe.source(artifacts, "acme", None) as source:
        list(source.pages("charges", None))
    assert "canary" not in str(refused.value)


def test_a_server_that_repeats_itself_does_not_hold_the_job(
    account: Account, artifacts: FolderArtifacts
) -> None:
    account.answers = [(200, {}, b'{"data": [], "has_more": true}')]
    with stripe.source(artifacts, "acme", None) as source:
        assert [page.records for page in source.pages("charges", None)] == [[]]


def test_no_server_is_unavailable(
    account: Account, artifacts: FolderArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_URL", "http://127.0.0.1:9")
    with pytest.raises(Unavailable), stripe.source(artifacts, "acme", None) as source:
        list(source.pages("charges", None))
