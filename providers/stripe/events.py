"""Events that Stripe posts to us."""

import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from providers.connections import connection
from providers.errors import Refused
from providers.http import secret
from providers.money import readable
from providers.records import Record
from providers.stripe import CONNECTIONS

TOLERANCE = timedelta(minutes=5)
"""How far the signature's time may be from when the event came in, in either direction."""

_EVENT_ID = re.compile(r"evt_[A-Za-z0-9_]{1,100}")


@dataclass(frozen=True, slots=True)
class Event:
    """A genuine event."""

    id: str
    type: str
    created: datetime
    object: dict[str, Any]
    """What the event is about, as it was at that moment."""
    data: dict[str, Any]

    @property
    def record(self) -> Record:
        return Record(self.id, self.created, self.data)


def verify(organization_id: str, body: bytes, signature: str, received_at: datetime) -> Event:
    """Return the event in a body that Stripe signed under STRIPE_WEBHOOK_SECRET.

    `signature` is the header `Stripe-Signature`: `t=<Unix time>` and one or more `v1=<hex>`, HMAC-SHA256 of
    `<t>.<body>`. Its time is held against when the event came in, since a job may wait. Raises Refused
    when it is not genuine, too old, from the future, no event, or of another organization's account.
    """
    given_at, signatures = _parse(signature)
    signed = given_at.encode() + b"." + body
    expected = hmac.new(secret("STRIPE_WEBHOOK_SECRET").encode(), signed, hashlib.sha256).hexdigest()
    # Every one is compared, so that the time taken tells nothing about which one fits.
    if not sum(hmac.compare_digest(expected.encode(), candidate.encode()) for candidate in signatures):
        raise Refused("the event's signature does not fit its body")
    # Only now is the time worth anything: anyone can write one.
    if abs(received_at.timestamp() - int(given_at)) > TOLERANCE.total_seconds():
        raise Refused(f"the event's signature is not within {TOLERANCE} of when it came in")
    event = _event(body)
    connected = connection(CONNECTIONS, organization_id, ()) or {}
    account, own = event.data.get("account"), connected.get("account")
    if account is not None and own is not None and account != own:
        raise Refused("the event is about the account of another organization")
    return event


def _parse(signature: str) -> tuple[str, list[str]]:
    pairs = [part.strip().partition("=")[::2] for part in signature.split(",")]
    times = [value for key, value in pairs if key == "t"]
    signatures = [value for key, value in pairs if key == "v1"]
    if len(times) != 1 or not re.fullmatch(r"[0-9]{1,12}", times[0]) or not signatures:
        raise Refused("the header Stripe-Signature must hold one t= and at least one v1=")
    return times[0], signatures


def _event(body: bytes) -> Event:
    try:
        data = json.loads(body)
        event = Event(
            id=data["id"],
            type=data["type"],
            created=datetime.fromtimestamp(data["created"], UTC),
            object=data["data"]["object"],
            data=data,
        )
        genuine = (
            _EVENT_ID.fullmatch(event.id) and event.type.isprintable() and isinstance(event.object, dict)
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        genuine = None
    if not genuine:
        raise Refused("the body is no Stripe event")
    return event


def money(minor: Any, currency: Any) -> str:
    """Return an amount in minor units, as Stripe states it, for a person to read: `12.50 USD`."""
    code = str(currency or "").upper()
    return f"{readable(int(minor or 0), code)} {code}".strip()
