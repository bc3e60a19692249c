"""Transactions as analysis and forecast take them, and their CSV form."""

import csv
import io
import math
from dataclasses import dataclass
from datetime import date

from providers.errors import Refused

MAX_BYTES = 20 * 1024 * 1024
MAX_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class Record:
    """One booking; income is positive, expense negative."""

    day: date
    amount: float
    category: str = "uncategorized"
    description: str = ""


def read_transactions(content: bytes) -> list[Record]:
    """Return the rows of a UTF-8 CSV with the columns date, amount and, if wanted, category and description.

    Raises Refused with the number of the first line that cannot be read; it does not quote the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Refused("the transactions are not UTF-8 text") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    names = [name.strip().lower() for name in rows.fieldnames or ()]
    if not {"date", "amount"} <= set(names):
        raise Refused("the first line of the transactions must name the columns date and amount")
    rows.fieldnames = names
    records: list[Record] = []
    try:
        for row in rows:
            if len(records) >= MAX_ROWS:
                raise Refused(f"more than {MAX_ROWS} transactions")
            records.append(_record(row))
    except (ValueError, TypeError, csv.Error):
        raise Refused(
            f"line {rows.line_num} of the transactions is not a date (YYYY-MM-DD) and a number"
        ) from None
    return records


def _record(row: dict[str, str]) -> Record:
    amount = float(row["amount"])
    if not math.isfinite(amount):
        raise ValueError("not finite")
    return Record(
        date.fromisoformat(row["date"].strip()),
        amount,
        (row.get("category") or "").strip() or "uncategorized",
        (row.get("description") or "").strip(),
    )
