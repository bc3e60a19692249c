"""Stripe: records of an account, from an exported file or from Stripe's API.

Cloud settings: STRIPE_CONNECTIONS, JSON like `{"acme": {"apiKey": "…", "account": "acct_…"}}` (`account` is
optional), and STRIPE_URL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from providers.artifacts import Artifacts
from providers.connections import connection
from providers.errors import Refused
from providers.records import ExportFile, Record, Source, instant

COLLECTIONS = ("charges", "invoices", "customers", "payouts", "refunds")

CONNECTIONS = "STRIPE_CONNECTIONS"
LARGEST_EXPORT_BYTES = 64 * 1024 * 1024


@contextmanager
def source(artifacts: Artifacts, organization_id: str, export_uri: str | None) -> Iterator[Source]:
    """Give the export file when one is named, else the organization's connected account."""
    if export_uri is not None:
        content = artifacts.read(organization_id, export_uri, max_bytes=LARGEST_EXPORT_BYTES)
        yield ExportFile(content, export_uri.endswith(".csv"), exported_record)
        return
    found = connection(CONNECTIONS, organization_id, ("apiKey",))
    if found is None:
        raise Refused(f"{organization_id} has no account in {CONNECTIONS}, and the job names no export file")
    from providers.stripe.api import StripeApi

    url = os.environ.get("STRIPE_URL") or "https://api.stripe.com"
    with StripeApi(url, found["apiKey"], found.get("account")) as account:
        yield account


def record_of(data: dict[str, Any]) -> Record:
    """Return an object of the API as a record. Raises KeyError, TypeError, ValueError or OverflowError."""
    return Record(str(data["id"]), datetime.fromtimestamp(int(data["created"]), UTC), data)


def exported_record(row: dict[str, Any]) -> Record:
    """Return a row of an export: an API object, or the dashboard's CSV columns `id` and `Created (UTC)`."""
    if "created" in row:
        return record_of(row)
    return Record(str(row["id"]), instant(row["Created (UTC)"]), row)
