"""QuickBooks: records of a company, from an exported file or from QuickBooks Online.

Cloud settings: QUICKBOOKS_CONNECTIONS, JSON like `{"acme": {"realmId": "…", "accessToken": "…"}}`, and
QUICKBOOKS_URL.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from providers.artifacts import Artifacts
from providers.connections import connection
from providers.errors import Refused
from providers.records import ExportFile, Record, Source, instant

ENTITIES = (
    "Account", "Bill", "BillPayment", "Class", "CreditMemo", "Customer", "Department", "Deposit", "Employee",
    "Estimate", "Invoice", "Item", "JournalEntry", "Payment", "PaymentMethod", "Purchase", "PurchaseOrder",
    "RefundReceipt", "SalesReceipt", "TaxAgency", "Term", "TimeActivity", "Transfer", "Vendor",
    "VendorCredit",
)  # fmt: skip

CONNECTIONS = "QUICKBOOKS_CONNECTIONS"
LARGEST_EXPORT_BYTES = 64 * 1024 * 1024


@contextmanager
def source(artifacts: Artifacts, organization_id: str, export_uri: str | None) -> Iterator[Source]:
    """Give the export file when one is named, else the organization's connected company."""
    if export_uri is not None:
        content = artifacts.read(organization_id, export_uri, max_bytes=LARGEST_EXPORT_BYTES)
        yield ExportFile(content, export_uri.endswith(".csv"), exported_record)
        return
    found = connection(CONNECTIONS, organization_id, ("realmId", "accessToken"))
    if found is None:
        raise Refused(f"{organization_id} has no company in {CONNECTIONS}, and the job names no export file")
    from providers.quickbooks.online import QuickBooksOnline

    url = os.environ.get("QUICKBOOKS_URL") or "https://quickbooks.api.intuit.com"
    with QuickBooksOnline(url, found["realmId"], found["accessToken"]) as company:
        yield company


def record_of(data: dict[str, Any]) -> Record:
    """Return an object of the API as a record. Raises KeyError, TypeError or ValueError."""
    return Record(str(data["Id"]), instant(data["MetaData"]["LastUpdatedTime"]), data)


def exported_record(row: dict[str, Any]) -> Record:
    """Return a row of an export: an API object, or flat columns with `Id` and `LastUpdatedTime`."""
    if "MetaData" in row:
        return record_of(row)
    return Record(str(row["Id"]), instant(row["LastUpdatedTime"]), row)
