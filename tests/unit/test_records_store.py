"""Copies of records: repeats and old versions change nothing, and organizations stay apart."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from providers import quickbooks, stripe
from providers.artifacts import FolderArtifacts
from providers.errors import Refused, Unavailable
from providers.records import ExportFile, Page, Record, RecordStore, synchronise

NOON = datetime(2026, 4, 15, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifacts:
    return FolderArtifacts(tmp_path)


@pytest.fixture
def store(artifacts: FolderArtifacts) -> RecordStore:
    return RecordStore(artifacts, "acme", "quickbooks")


@dataclass
class Script:
    """A source that gives the pages it was handed and remembers what it was asked."""

    script: list[Page]
    asked: list[datetime | None] = field(default_factory=list)

    def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
        self.asked.append(since)
        yield from self.script


def record(name: str, at: datetime = NOON, **data: Any) -> Record:
    return Record(name, at, {"Id": name, **data})


def test_only_what_is_new_or_newer_is_written(store: RecordStore) -> None:
    assert store.put("Invoice", record("1", total=1))
    assert not store.put("Invoice", record("1", total=1))
    assert store.put("Invoice", record("1", NOON + MINUTE, total=2))
    assert not store.put("Invoice", record("1", NOON, total=1))
    assert store.get("Invoice", "1") == {"Id": "1", "total": 2}
    assert store.get("Invoice", "2") is None
    assert store.get("Bill", "1") is None


def test_organizations_and_systems_do_not_share_records(
    artifacts: FolderArtifacts, store: RecordStore
) -> None:
    store.put("Invoice", record("1"))
    assert RecordStore(artifacts, "globex", "quickbooks").get("Invoice", "1") is None
    assert RecordStore(artifacts, "acme", "stripe").get("Invoice", "1") is None


@pytest.mark.parametrize("name", ["a/b", "x/../../y", "ü€", "a b", "%2F"])
def test_any_id_is_one_file(store: RecordStore, tmp_path: Path, name: str) -> None:
    store.put("Invoice", record(name))
    assert store.get("Invoice", name) == {"Id": name}
    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "acme/quickbooks/Invoice"]


@pytest.mark.parametrize("name", ["", "x" * 201, "../../x", "."])
def test_an_id_that_cannot_be_a_file_is_refused(store: RecordStore, name: str) -> None:
    with pytest.raises(Refused):
        store.put("Invoice", record(name))


def test_the_cursor_comes_from_the_first_page_and_reaches_back_a_little(store: RecordStore) -> None:
    pages = [Page([record("1")], NOON), Page([record("2", NOON + MINUTE)], NOON + 5 * MINUTE)]
    source = Script(pages)
    first = synchronise(source, store, "Invoice")
    again = synchronise(source, store, "Invoice")
    assert (first.read, first.written, first.up_to) == (2, 2, NOON)
    assert (again.read, again.written, again.up_to) == (2, 0, NOON)
    assert source.asked == [None, NOON - MINUTE]


def test_a_failure_between_pages_keeps_the_cursor_where_it_was(store: RecordStore) -> None:
    class Breaking(Script):
        def pages(self, collection: str, since: datetime | None) -> Iterator[Page]:
            yield from super().pages(collection, since)
            raise Unavailable("gone")

    with pytest.raises(Unavailable):
        synchronise(Breaking([Page([record("1")], NOON)]), store, "Invoice")
    assert store.cursor("Invoice") is None
    assert store.get("Invoice", "1")
    assert synchronise(Script([Page([record("1")], NOON)]), store, "Invoice").written == 0


def test_it_stops_between_pages_when_told(store: RecordStore) -> None:
    answers = iter([False, True])
    with pytest.raises(Unavailable, match="stopped after 1"):
        synchronise(
            Script([Page([record("1")], NOON), Page([record("2")], NOON)]),
            store, "Invoice", stopped=lambda: next(answers),
        )  # fmt: skip
    assert store.get("Invoice", "2") is None


def test_the_cursor_never_moves_back_and_an_empty_answer_keeps_it(store: RecordStore) -> None:
    store.move_cursor("Invoice", NOON)
    synchronise(Script([Page([], NOON - MINUTE)]), store, "Invoice")
    assert store.cursor("Invoice") == NOON
    assert synchronise(Script([]), store, "Invoice").up_to == NOON


JSON_LINES = "\n".join(
    json.dumps({"Id": str(n), "MetaData": {"LastUpdatedTime": f"2026-04-1{n}T12:00:00Z"}}) for n in (1, 3, 2)
)
CSV = 'Id,LastUpdatedTime,Name\r\n1,2026-04-11T12:00:00Z,"Müller, A"\r\n2,2026-04-12T12:00:00+02:00,"two\r\nlines"\r\n'


def test_exports_in_json_lines_and_csv(artifacts: FolderArtifacts, store: RecordStore) -> None:
    lines = artifacts.write("acme", "imports/invoices.jsonl", JSON_LINES.encode() + b"\n\n")
    table = artifacts.write("acme", "imports/customers.csv", b"\xef\xbb\xbf" + CSV.encode())
    with quickbooks.source(artifacts, "acme", lines) as source:
        done = synchronise(source, store, "Invoice")
    assert (done.read, done.written, done.up_to) == (3, 3, datetime(2026, 4, 13, 12, tzinfo=UTC))
    with quickbooks.source(artifacts, "acme", table) as source:
        assert synchronise(source, store, "Customer").written == 2
    kept = store.get("Customer", "1")
    assert kept is not None
    assert kept["Name"] == "Müller, A"


def test_a_stripe_export_as_the_dashboard_writes_it(artifacts: FolderArtifacts) -> None:
    uri = artifacts.write(
        "acme", "imports/charges.csv", b"id,Created (UTC),Amount\nch_1,2026-04-11 12:00:00,5.00\n"
    )
    with stripe.source(artifacts, "acme", uri) as source:
        (page,) = source.pages("charges", None)
    assert page.records[0].changed_at == datetime(2026, 4, 11, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "is_csv", "problem"),
    [
        (b"\xff\xfe", False, "UTF-8"),
        (b'{"Id": "1"', False, "line 1 .* no JSON"),
        (b'\n{"Id": "1"}', False, "line 2 .* lacks 'LastUpdatedTime'"),
        (b"[1]", False, "line 1 .* does not fit"),
        (b'{"Id": "1", "LastUpdatedTime": "soon"}', False, "line 1 .* does not fit"),
        (b'{"Id": "1", "LastUpdatedTime": 5}', False, "line 1 .* does not fit"),
        (b"Id,LastUpdatedTime\n1\n", True, "line 2 .* does not fit"),
        (b'Id,LastUpdatedTime\n"1,2\n', True, "no CSV"),
        (b"[" * 100_000, False, "no JSON"),
    ],
)
def test_a_bad_export_names_the_line_and_not_its_content(content: bytes, is_csv: bool, problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        list(ExportFile(content, is_csv, quickbooks.exported_record).pages("Invoice", None))


@pytest.mark.parametrize("module", [quickbooks, stripe])
def test_no_export_and_no_connection_is_refused(
    artifacts: FolderArtifacts, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    monkeypatch.setenv(module.CONNECTIONS, json.dumps({"globex": {"realmId": "1", "accessToken": "s3cret"}}))
    with pytest.raises(Refused, match=module.CONNECTIONS), module.source(artifacts, "acme", None):
        pass
    for wrong in ("{s3cret", '["s3cret"]', '{"acme": {"realmId": 5, "x": "s3cret"}}'):
        monkeypatch.setenv(module.CONNECTIONS, wrong)
        with pytest.raises(Refused) as refused, module.source(artifacts, "acme", None):
            pass
        assert "s3cret" not in str(refused.value)
