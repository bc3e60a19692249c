"""Handlers of reports, integrations, clean-up and schedules."""

import json
import os
import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from providers.artifacts import artifacts
from providers.errors import Refused
from streams.agents.emails import SendEmail
from streams.agents.integrations import SyncQuickBooks, SyncStripe, sync_quickbooks, sync_stripe
from streams.agents.maintenance import CleanUp, clean_up
from streams.agents.reports import GenerateReport, ReportRow, generate_report
from streams.agents.scheduled import ScheduleTick, tick
from streams.errors import Poison
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Job, Payload

P = TypeVar("P", bound=Payload)
AT = datetime(2026, 4, 15, 12, tzinfo=UTC)


def job(payload: P, organization_id: str = "acme", queued_at: datetime = AT) -> Job[P]:
    return Job("job-1", TYPE_OF_PAYLOAD[type(payload)], organization_id, payload, 1, 5, queued_at, "key-1")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ARTIFACT_DIR", str(tmp_path))
    return tmp_path


REPORT: dict[str, Any] = {
    "kind": "profit_and_loss", "format": "pdf", "title": "Q1", "period_start": date(2026, 1, 1),
    "period_end": date(2026, 3, 31), "rows": [ReportRow(date=date(2026, 2, 1), account="Sales", amount_minor=5)],
}  # fmt: skip


@pytest.mark.parametrize(("form", "magic"), [("pdf", b"%PDF-"), ("xlsx", b"PK")])
def test_a_report_is_written_once_and_mailed(folder: Path, form: str, magic: bytes) -> None:
    running = job(GenerateReport(**(REPORT | {"format": form, "deliver_to": ["ada@b.example"]})))
    ready = generate_report(running)
    assert generate_report(job(running.payload)).uri == ready.uri
    content = artifacts().read("acme", ready.uri)
    assert content.startswith(magic)
    assert len(content) == ready.size_bytes
    assert len(list(folder.rglob(f"*.{form}"))) == 1
    assert running.follow_ups[0].payload == SendEmail(
        template="report_ready", to=["ada@b.example"], attachments=[ready.uri],
        variables={"title": "Q1", "period": "2026-01-01 to 2026-03-31"},
    )  # fmt: skip
    assert HANDLERS["report.generate"].runs_in == "process"
    pickle.loads(pickle.dumps((running.payload, running.follow_ups, ready)))


def test_a_report_for_nobody_is_only_written() -> None:
    running = job(GenerateReport(**REPORT))
    generate_report(running)
    assert running.follow_ups == []


@pytest.mark.parametrize(
    "fields",
    [
        {"period_end": date(2025, 1, 1)}, {"currency": "dollars"}, {"title": ""}, {"kind": "horoscope"},
        {"rows": [ReportRow(date=date(2026, 4, 1), account="Sales", amount_minor=5)]}, {"deliver_to": ["x"]},
    ],
)  # fmt: skip
def test_a_wrong_report_is_refused_before_it_is_published(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerateReport(**(REPORT | fields))


def test_syncs_read_the_organizations_export_and_only_its_own() -> None:
    invoice = {"Id": "1", "MetaData": {"LastUpdatedTime": "2026-04-11T12:00:00Z"}}
    books = artifacts().write("acme", "imports/invoices.jsonl", json.dumps(invoice).encode())
    charges = artifacts().write("acme", "imports/charges.jsonl", b'{"id": "ch_1", "created": 1775908800}')
    done = sync_quickbooks(job(SyncQuickBooks(entity="Invoice", export_uri=books)))
    assert (done.read, done.written, done.up_to) == (1, 1, datetime(2026, 4, 11, 12, tzinfo=UTC))
    assert sync_quickbooks(job(SyncQuickBooks(entity="Invoice", export_uri=books))).written == 0
    assert sync_stripe(job(SyncStripe(collection="charges", export_uri=charges))).written == 1
    with pytest.raises(Refused):
        sync_quickbooks(job(SyncQuickBooks(entity="Invoice", export_uri=books), "globex"))


def test_an_unknown_entity_is_refused_before_it_is_published() -> None:
    with pytest.raises(ValidationError, match="Invoice"):
        SyncQuickBooks(entity="Invoice; DROP")
    with pytest.raises(ValidationError, match="charges"):
        SyncStripe(collection="../v1/charges")


def test_clean_up_deletes_what_is_old_under_its_prefixes_of_its_organization(folder: Path) -> None:
    now = datetime.now(UTC)
    old = (now - timedelta(hours=50)).timestamp()
    for organization in ("acme", "globex"):
        for name in ("tmp/old", "tmp/new", "exports/old", "reports/old"):
            artifacts().write(organization, name, b"x")
            if name.endswith("old"):
                os.utime(folder / organization / name, (old, old))
    done = clean_up(job(CleanUp(prefixes=["tmp/", "exports/"], older_than_hours=48), queued_at=now))
    assert done.deleted == {"tmp/": 1, "exports/": 1}
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "acme/reports/old", "acme/tmp/new",
        "globex/exports/old", "globex/reports/old", "globex/tmp/new", "globex/tmp/old",
    ]  # fmt: skip


def test_a_clean_up_that_waited_deletes_no_more_than_was_asked_for(folder: Path) -> None:
    now = datetime.now(UTC)
    artifacts().write("acme", "tmp/a", b"x")
    os.utime(folder / "acme/tmp/a", ((now - timedelta(hours=3)).timestamp(),) * 2)
    payload = CleanUp(prefixes=["tmp/"], older_than_hours=2)
    assert clean_up(job(payload, queued_at=now - timedelta(hours=2))).deleted == {"tmp/": 0}
    assert clean_up(job(payload, queued_at=now)).deleted == {"tmp/": 1}


@pytest.mark.parametrize("prefix", ["", "/", "reports/", "tmp", "../tmp/", "stripe/events/", "quickbooks/"])
def test_what_cannot_be_made_again_is_never_cleaned_up(prefix: str) -> None:
    with pytest.raises(ValidationError, match="prefix"):
        CleanUp(prefixes=[prefix], older_than_hours=1)


def slot(job_type: str, payload: str) -> Job[ScheduleTick]:
    return job(ScheduleTick(schedule="nightly", slot=AT, job_type=job_type, payload_json=payload))


def test_a_slot_queues_its_job() -> None:
    running = slot("maintenance.cleanup", '{"prefixes": ["tmp/"], "olderThanHours": 24}')
    assert tick(running).job_type == "maintenance.cleanup"
    assert running.follow_ups[0].payload == CleanUp(prefixes=["tmp/"], older_than_hours=24)


@pytest.mark.parametrize(
    ("job_type", "payload", "problem"),
    [
        ("maintenance.clean", "{}", "'maintenance.clean'; expected one of .*maintenance.cleanup"),
        ("schedule.tick", "{}", "expected one of"),
        ("maintenance.cleanup", "{", "is no maintenance.cleanup: .*JSON"),
        ("maintenance.cleanup", '{"prefixes": ["tmp/"]}', "olderThanHours: Field required"),
        ("maintenance.cleanup", '{"prefixes": ["s3cret/"], "olderThanHours": 24}', "prefixes: "),
        ("maintenance.cleanup", '{"prefixes": ["tmp/"], "olderThanHours": 24, "x": 1}', "x: Extra inputs"),
    ],
)
def test_a_slot_with_a_wrong_job_is_poison_and_says_why(job_type: str, payload: str, problem: str) -> None:
    running = slot(job_type, payload)
    with pytest.raises(Poison, match=problem) as poison:
        tick(running)
    assert "s3cret" not in str(poison.value)
    assert running.follow_ups == []


def test_loading_these_handlers_loads_no_large_library() -> None:
    modules = ["critical", "emails", "reports", "webhooks", "integrations", "maintenance", "scheduled"]
    large = {"reportlab", "openpyxl", "PIL", "jinja2", "httpx", "aiosmtplib", "standardwebhooks", "numpy"}
    code = f"""
import importlib, sys
for module in {modules}: importlib.import_module("streams.agents." + module)
print(sorted({large} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
