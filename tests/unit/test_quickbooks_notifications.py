"""Intuit's notifications: genuine, and about the right company."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from providers.errors import Refused
from providers.quickbooks.notifications import Change, verify

TOKEN = "verifier"
ENTITIES = [
    {"name": "Invoice", "id": "7", "operation": "Update", "lastUpdated": "2026-04-15T05:00:00-07:00"},
    {"name": "Customer", "id": "9", "operation": "Delete", "lastUpdated": "2026-04-15T12:00:00.000Z"},
    {"name": "Preferences", "id": "1", "operation": "Update", "lastUpdated": "2026-04-15T12:00:00Z"},
]
AT = datetime(2026, 4, 15, 12, tzinfo=UTC)
EXPECTED = [Change("Invoice", "7", False, AT), Change("Customer", "9", True, AT)]


def own_layout(realm: str = "42") -> bytes:
    company = {"realmId": realm, "dataChangeEvent": {"entities": ENTITIES}}
    return json.dumps({"eventNotifications": [company]}).encode()


def cloud_events(realm: str = "42") -> bytes:
    return json.dumps(
        [
            {
                "specversion": "1.0", "id": str(number),
                "type": f"qbo.{e['name'].lower()}.{e['operation'].lower()}d.v1",
                "time": e["lastUpdated"], "intuitentityid": e["id"], "intuitaccountid": realm,
            }
            for number, e in enumerate(ENTITIES)
        ]
    ).encode()  # fmt: skip


def signed(body: bytes, token: str = TOKEN) -> str:
    return base64.b64encode(hmac.new(token.encode(), body, hashlib.sha256).digest()).decode()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("QUICKBOOKS_VERIFIER_TOKEN", TOKEN)
    monkeypatch.delenv("QUICKBOOKS_CONNECTIONS", raising=False)
    return monkeypatch


@pytest.mark.parametrize("body", [own_layout(), cloud_events()])
def test_both_layouts_name_the_same_changes(body: bytes) -> None:
    assert verify("acme", body, signed(body)) == EXPECTED


@pytest.mark.parametrize("signature", ["", "AAAA", "not base64!", "é", signed(own_layout(), "other")])
def test_a_wrong_signature_is_refused(signature: str) -> None:
    with pytest.raises(Refused, match="signature"):
        verify("acme", own_layout(), signature)


def test_a_changed_body_is_refused() -> None:
    with pytest.raises(Refused, match="signature"):
        verify("acme", own_layout() + b" ", signed(own_layout()))


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"5", b"{}", b"[1]", b'[{"type":"qbo"}]', b'{"eventNotifications":[{}]}', b"[" * 100_000],
)
def test_a_signed_body_that_is_no_notification_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="no QuickBooks notification"):
        verify("acme", body, signed(body))


@pytest.mark.parametrize("layout", [own_layout, cloud_events])
def test_another_organizations_company_is_refused(environment: pytest.MonkeyPatch, layout: Any) -> None:
    environment.setenv("QUICKBOOKS_CONNECTIONS", json.dumps({"acme": {"realmId": "42", "accessToken": "t"}}))
    assert verify("acme", layout(), signed(layout()))
    with pytest.raises(Refused, match="another organization"):
        verify("acme", layout("43"), signed(layout("43")))
