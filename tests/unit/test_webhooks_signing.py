"""Signatures that an independent verifier accepts."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from providers.errors import Unavailable
from providers.webhooks import event_body, secret_of, sign

KEY = "a signing key of thirty-two characters or more"
BODY = event_body("invoice.paid", datetime(2026, 4, 15, tzinfo=UTC), {"amount": "1,00 €"})


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SIGNING_KEY", KEY)


def test_a_receiver_with_the_organizations_secret_accepts_and_no_other_does() -> None:
    headers = sign("acme", "job-1", BODY, datetime.now(UTC))
    assert Webhook(secret_of("acme", KEY)).verify(BODY, headers)["data"] == {"amount": "1,00 €"}
    for secret in (secret_of("globex", KEY), secret_of("acme", KEY + "x")):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of("acme", KEY)).verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of("acme", KEY)).verify(BODY, headers | {"webhook-id": "job-2"})


def test_the_signature_is_the_one_the_specification_computes() -> None:
    at = datetime.fromtimestamp(1_700_000_000, UTC)
    headers = sign("acme", "job-1", BODY, at)
    secret = base64.b64decode(secret_of("acme", KEY).removeprefix("whsec_"))
    signed = b"job-1.1700000000." + BODY
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": "job-1", "webhook-timestamp": "1700000000", "webhook-signature": f"v1,{expected}",
    }  # fmt: skip


def test_the_zone_of_the_clock_does_not_matter() -> None:
    at = datetime(2026, 4, 15, 12, tzinfo=UTC)
    assert sign("acme", "1", BODY, at) == sign("acme", "1", BODY, at.astimezone(timezone(timedelta(hours=5))))


@pytest.mark.parametrize("message_id", ["a\r\nx: y", "schlüssel", "a b", "schedule@2026-04-15T00:00:00Z"])
def test_any_id_is_safe_in_a_header(message_id: str) -> None:
    headers = sign("acme", message_id, BODY, datetime.now(UTC))
    assert headers["webhook-id"].isascii()
    assert headers["webhook-id"].isprintable()
    assert " " not in headers["webhook-id"]
    assert Webhook(secret_of("acme", KEY)).verify(BODY, headers)


def test_a_short_or_missing_key_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SIGNING_KEY", "short")
    with pytest.raises(Unavailable, match="WEBHOOK_SIGNING_KEY"):
        sign("acme", "1", BODY, datetime.now(UTC))
    monkeypatch.delenv("WEBHOOK_SIGNING_KEY")
    with pytest.raises(Unavailable, match="WEBHOOK_SIGNING_KEY"):
        sign("acme", "1", BODY, datetime.now(UTC))


def test_an_event_is_laid_out_as_the_specification_advises() -> None:
    event = json.loads(BODY)
    assert list(event) == ["type", "timestamp", "data"]
    assert event["timestamp"] == "2026-04-15T00:00:00+00:00"
