"""An organization's copy of records that another system keeps.

One artifact per record, `<system>/<collection>/<id>.json`, and one cursor per collection. Writing a record
twice, or an older version after a newer one, changes nothing, so a synchronisation may be repeated. Two that
run at the same moment are safe except for one instant: a record that both write may keep the older version.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import quote

from providers.artifacts import SCHEME, Artifacts, NotFound
from providers.errors import Refused, Unavailable

PAGE_RECORDS = 500
LONGEST_ID = 200


@dataclass(frozen=True, slots=True)
class Record:
    """One record of another system, and when that system last changed it."""

    id: str
    changed_at: datetime
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some records, and up to when, on the other system's clock, its answers are complete."""

    records: list[Record]
    as_of: datetime | None


class Source(Protocol):
    """Whatever records are read from."""

    def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
        """Return the records that changed at or after `since`, or all of them.

        Raises Unavailable, RateLimited or Refused.
        """
        ...


@dataclass(frozen=True, slots=True)
class Synced:
    """What a synchronisation did."""

    read: int
    written: int
    up_to: datetime | None


class RecordStore:
    """The copy of one organization from one system."""

    def __init__(self, artifacts: Artifacts, organization_id: str, system: str) -> None:
        self._artifacts = artifacts
        self._organization_id = organization_id
        self._system = system

    def put(self, collection: str, record: Record) -> bool:
        """Keep a record; return False when this or a newer version is kept already."""
        name = _name(collection, record.id)
        kept = self._read(name)
        if kept is not None and datetime.fromisoformat(kept["changedAt"]) > record.changed_at:
            return False
        fresh = {"id": record.id, "changedAt": record.changed_at.isoformat(), "data": record.data}
        if fresh == kept:
            return False
        self._write(name, fresh)
        return True

    def get(self, collection: str, record_id: str) -> dict[str, Any] | None:
        """Return a record as the other system stated it, or None."""
        kept = self._read(_name(collection, record_id))
        return None if kept is None else kept["data"]

    def cursor(self, collection: str) -> datetime | None:
        """Return up to when a collection is complete, or None before the first synchronisation."""
        kept = self._read(f"cursors/{collection}.json")
        return None if kept is None else datetime.fromisoformat(kept["upTo"])

    def move_cursor(self, collection: str, up_to: datetime) -> None:
        """State that a collection is complete up to an instant."""
        self._write(f"cursors/{collection}.json", {"upTo": up_to.isoformat()})

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = self._artifacts.read(
                self._organization_id, f"{SCHEME}{self._organization_id}/{self._system}/{name}"
            )
        except NotFound:
            return None
        kept: dict[str, Any] = json.loads(content)
        return kept

    def _write(self, name: str, value: dict[str, Any]) -> None:
        content = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
        self._artifacts.write(self._organization_id, f"{self._system}/{name}", content)


def _name(collection: str, record_id: str) -> str:
    quoted = quote(record_id, safe="")
    if not 0 < len(quoted) <= LONGEST_ID:
        raise Refused(f"a record of {collection} has no id, or one of more than {LONGEST_ID} characters")
    return f"{collection}/{quoted}.json"


def synchronise(
    source: Source,
    store: RecordStore,
    collection: str,
    *,
    overlap: timedelta = timedelta(minutes=1),
    stopped: Callable[[], bool] = lambda: False,
) -> Synced:
    """Copy what changed since the cursor, then move the cursor.

    The cursor comes from the first page: what changes while later pages are read is read again next time.
    `overlap` reaches back before the cursor, for records that the other system shows late. Raises Unavailable
    when `stopped` says so between two pages.
    """
    before = store.cursor(collection)
    up_to, read, written = None, 0, 0
    for page in source.pages(collection, before - overlap if before else None):
        if stopped():
            raise Unavailable(f"stopped after {read} records of {collection}; the next attempt goes on")
        up_to = up_to or page.as_of
        read += len(page.records)
        written += sum(store.put(collection, record) for record in page.records)
    if up_to is not None and (before is None or up_to > before):
        store.move_cursor(collection, up_to)
    return Synced(read, written, up_to or before)


@dataclass(frozen=True, slots=True)
class ExportFile:
    """Records from a file that a person exported: JSON, one object a line, or CSV with a header."""

    content: bytes
    is_csv: bool
    record_of: Callable[[dict[str, Any]], Record]
    """Raises KeyError, TypeError or ValueError for a row that is no record."""

    def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
        """Return every record: a file that is handed over later may hold older changes."""
        records = [self._record(number, row) for number, row in self._rows()]
        as_of = max((record.changed_at for record in records), default=None)
        for start in range(0, len(records), PAGE_RECORDS):
            yield Page(records[start : start + PAGE_RECORDS], as_of)

    def _rows(self) -> Iterator[tuple[int, Any]]:
        try:
            text = self.content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Refused("the export is not UTF-8 text") from None
        if self.is_csv:
            reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                raise Refused(f"line {reader.line_num} of the export is no CSV: {error}") from None
            return
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    raise Refused(f"line {number} of the export is no JSON") from None

    def _record(self, number: int, row: Any) -> Record:
        try:
            return self.record_of(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            problem = f"lacks {error}" if isinstance(error, KeyError) else "does not fit"
            raise Refused(f"the record on line {number} of the export {problem}") from None


def instant(value: str) -> datetime:
    """Return an ISO 8601 instant; one without a zone is taken as UTC. Raises ValueError."""
    at = datetime.fromisoformat(value)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
