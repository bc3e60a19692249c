"""Change notifications that Intuit posts to us."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from providers.connections import connection
from providers.errors import Refused
from providers.http import secret
from providers.quickbooks import CONNECTIONS, ENTITIES
from providers.records import Record, instant

_ENTITY = {name.lower(): name for name in ENTITIES}


@dataclass(frozen=True, slots=True)
class Change:
    """One entity that changed."""

    entity: str
    id: str
    deleted: bool
    at: datetime

    @property
    def tombstone(self) -> Record:
        """What is kept in place of a deleted record, in the shape that the API's change data has it."""
        return Record(self.id, self.at, {"Id": self.id, "domain": "QBO", "status": "Deleted"})


def verify(organization_id: str, body: bytes, signature: str) -> list[Change]:
    """Return the changes to known entities that a genuine notification names.

    `signature` is the header `intuit-signature`: base64 of HMAC-SHA256 over the body under
    QUICKBOOKS_VERIFIER_TOKEN. Raises Refused when it is not genuine, not a notification, or speaks of a
    company that is not the organization's.
    """
    expected = hmac.new(secret("QUICKBOOKS_VERIFIER_TOKEN").encode(), body, hashlib.sha256).digest()
    try:
        given = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        given = b""
    if not hmac.compare_digest(expected, given):
        raise Refused("the notification's signature does not fit its body")
    try:
        changes = list(_changes(json.loads(body)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused("the body is no QuickBooks notification") from None
    connected = connection(CONNECTIONS, organization_id, ("realmId",))
    if connected is not None and any(realm != connected["realmId"] for realm, _ in changes):
        raise Refused("the notification is about the company of another organization")
    return [change for _, change in changes if change.entity in ENTITIES]


def _changes(notification: Any) -> Iterator[tuple[str, Change]]:
    """Yield company and change, from Intuit's own layout or from a list of CloudEvents, which replaces it."""
    if isinstance(notification, list):
        for event in notification:
            # For instance `qbo.invoice.updated.v1`.
            _, entity, operation, *_ = event["type"].split(".")
            yield event["intuitaccountid"], _change(entity, event["intuitentityid"], operation, event["time"])
        return
    for company in notification["eventNotifications"]:
        for entity in company["dataChangeEvent"]["entities"]:
            yield (
                company["realmId"],
                _change(entity["name"], entity["id"], entity["operation"], entity["lastUpdated"]),
            )


def _change(entity: str, record_id: str, operation: str, at: str) -> Change:
    deleted = operation.lower() in ("delete", "deleted")
    return Change(_ENTITY.get(entity.lower(), entity), str(record_id), deleted, instant(at))
