"""Who an event is from, in a way that its receiver can check."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote

from providers.errors import Unavailable
from providers.http import secret

SHORTEST_KEY = 32


def secret_of(organization_id: str, signing_key: str) -> str:
    """Return the secret that an organization's receivers verify with: `whsec_` and base64.

    It is HMAC-SHA256 of `webhook:<organization>` under WEBHOOK_SIGNING_KEY, so there is nothing to store and
    nothing to put into a job; a new key changes the secret of every organization. Raises Unavailable for a key
    shorter than 32 characters.
    """
    if len(signing_key) < SHORTEST_KEY:
        raise Unavailable(f"WEBHOOK_SIGNING_KEY must have at least {SHORTEST_KEY} characters")
    derived = hmac.new(signing_key.encode(), f"webhook:{organization_id}".encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(derived.digest()).decode("ascii")


def sign(organization_id: str, message_id: str, body: bytes, sent_at: datetime) -> dict[str, str]:
    """Return the three headers that identify, date and sign a body."""
    from standardwebhooks import Webhook

    # An id may be any text; quoting leaves the usual ones as they are and makes every other safe in a header.
    identity = quote(message_id, safe="@:+~")
    webhook = Webhook(secret_of(organization_id, secret("WEBHOOK_SIGNING_KEY")))
    # `sign` takes the clock face for UTC, whatever the zone.
    at = sent_at.astimezone(UTC)
    return {
        "webhook-id": identity,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": webhook.sign(identity, at, body.decode("utf-8")),
    }
