"""Stripe's events: genuine, timely, and of the right account."""

import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from providers.errors import Refused, Unavailable
from providers.stripe import events

SECRET = "whsec_test"
AT = datetime(2026, 4, 15, 12, tzinfo=UTC)


def event(**changes: Any) -> bytes:
    whole = {
        "id": "evt_1", "object": "event", "type": "invoice.paid", "created": int(AT.timestamp()),
        "data": {"object": {"id": "in_1", "amount_paid": 1250}},
    }  # fmt: skip
    return json.dumps(whole | changes).encode()


def signed(body: bytes, at: datetime = AT, secret: str = SECRET) -> str:
    moment = int(at.timestamp())
    digest = hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={moment},v1={digest}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", SECRET)
    monkeypatch.delenv("STRIPE_CONNECTIONS", raising=False)
    return monkeypatch


def test_a_genuine_event() -> None:
    body = event()
    found = events.verify("acme", body, signed(body), AT)
    assert (found.id, found.type, found.created, found.object["id"]) == ("evt_1", "invoice.paid", AT, "in_1")


def test_any_of_several_signatures_may_fit_and_other_schemes_are_ignored() -> None:
    body = event()
    genuine = signed(body)
    rolled = f"{genuine.split(',')[0]},v1={'0' * 64},{genuine.split(',')[1]},v0=abc"
    assert events.verify("acme", body, rolled, AT).id == "evt_1"
    only_v0 = genuine.replace("v1=", "v0=")
    with pytest.raises(Refused, match="Stripe-Signature"):
        events.verify("acme", body, only_v0, AT)


@pytest.mark.parametrize(
    "change",
    [
        lambda body, header: (body + b" ", header),
        lambda body, header: (body.replace(b"1250", b"9950"), header),
        lambda body, header: (body, header[:-1] + ("0" if header[-1] != "0" else "1")),
        lambda body, header: (body, header.replace(str(int(AT.timestamp())), str(int(AT.timestamp()) + 1))),
        lambda body, header: (body, signed(body, secret="whsec_other")),
        lambda body, header: (body, header.upper().replace("T=", "t=").replace("V1=", "v1=")),
        lambda body, header: (body, header.split(",")[0] + ",v1=é"),
    ],
)
def test_anything_changed_is_refused(change: Any) -> None:
    body = event()
    changed, header = change(body, signed(body))
    with pytest.raises(Refused, match="does not fit"):
        events.verify("acme", changed, header, AT)


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", "t=1", "v1=abc", "t=1,t=2,v1=abc", "t=-5,v1=abc", "t=²,v1=a", f"t={'9' * 30},v1=abc"],
)
def test_a_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(Refused, match="Stripe-Signature"):
        events.verify("acme", event(), header, AT)


@pytest.mark.parametrize("away", [timedelta(seconds=300), timedelta(seconds=-300)])
def test_five_minutes_either_way_are_accepted_and_no_second_more(away: timedelta) -> None:
    body = event()
    assert events.verify("acme", body, signed(body), AT + away)
    with pytest.raises(Refused, match="when it came in"):
        events.verify("acme", body, signed(body), AT + away * 1.004)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, event(id="../evt"), event(id=5), event(created="x"),
        event(created=10**30), event(data=[]), event(data={"object": "in_1"}), event(type=None), event(type="a\nb"),
    ],
)  # fmt: skip
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="no Stripe event"):
        events.verify("acme", body, signed(body), AT)


def test_an_event_of_another_organizations_account_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STRIPE_CONNECTIONS", json.dumps({"acme": {"apiKey": "k", "account": "acct_1"}}))
    own, other = event(account="acct_1"), event(account="acct_2")
    assert events.verify("acme", own, signed(own), AT)
    with pytest.raises(Refused, match="another organization"):
        events.verify("acme", other, signed(other), AT)


def test_without_a_secret_nothing_is_accepted(environment: pytest.MonkeyPatch) -> None:
    body = event()
    environment.setenv("STRIPE_WEBHOOK_SECRET", "")
    with pytest.raises(Unavailable, match="STRIPE_WEBHOOK_SECRET is not set"):
        events.verify("acme", body, signed(body, secret=""), AT)


def test_money_is_written_with_the_currencys_decimals() -> None:
    assert events.money(125_050, "usd") == "1,250.50 USD"
    assert events.money(1250, "jpy") == "1,250 JPY"
    assert events.money(1250, "kwd") == "1.250 KWD"
    assert events.money(-5, "eur") == "-0.05 EUR"
    assert events.money(None, None) == "0.00"
