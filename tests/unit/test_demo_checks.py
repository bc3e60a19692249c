"""Each expectation of the demonstration is met by what should happen, and is missed when it does not."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from demo.checks import Evidence, checks, missed
from demo.inputs import INVOICE_TOTAL
from demo.workload import (
    FLAKY,
    GARBAGE,
    GONE,
    SCANS,
    STRIPE_EVENT,
    Fate,
    Organizations,
    Planned,
    Workload,
    plan,
)
from providers.artifacts import artifacts
from streams.agents import load
from streams.jobs import TYPE_OF_PAYLOAD
from streams.queues import EMAILS, QUEUES
from streams.replay import Letter
from tracking.jobs import Job
from tracking.states import Status

AT = datetime(2026, 4, 15, 12, tzinfo=UTC)
RECEIVER = "http://127.0.0.1:1"


def job(organization: str, job_type: str, queue: str, **known: Any) -> Job:
    """Return a completed job; what is not known of it is None."""
    facts = dict.fromkeys(field.name for field in fields(Job)) | {
        "organization_id": organization, "job_type": job_type, "queue_name": queue, "status": Status.COMPLETED,
        "attempt": 1, "queue_time_ms": 10.0, "duration_ms": 1.0,
    }  # fmt: skip
    return Job(**{**facts, **known})


@dataclass
class Scene:
    """A workload, and the evidence of a run in which all went well."""

    workload: Workload
    evidence: Evidence


def outcome(workload: Workload, planned: Planned) -> Job:
    """Return what the store should know of a job."""
    kind, owner = TYPE_OF_PAYLOAD[type(planned.publication.payload)], planned.publication.organization_id
    facts: dict[Fate, dict[str, Any]] = {
        "completes": {},
        "completes on attempt 3": {"attempt": 3},
        "completes after a replay": {"replay_id": "01a20d00"},
        "stays dead": {"status": Status.DEAD},
    }
    output = {"income": workload.income} if kind == "ai.analyze_financials" else None
    wait = 5000.0 if owner == workload.organizations.noisy else 50.0
    return job(owner, kind, planned.queue, output=output, queue_time_ms=wait, **facts[planned.fate])


def jobs_of(workload: Workload) -> list[Job]:
    # A duplicate has the id, and so the row, of the job that it repeats.
    found = [outcome(workload, planned) for planned in workload if planned.fate != "is a duplicate"]
    ocr = [one for one in found if one.job_type == "document.ocr"]
    for index, one in enumerate(ocr):
        found[found.index(one)] = replace(one, output={"method": "ocr" if index < SCANS else "text"})
    owner = workload.organizations.busy
    for number in workload.invoices:
        read = {"invoiceNumber": number, "category": "invoice", "total": INVOICE_TOTAL}
        found.append(job(owner, "document.classify", "document-processing", output=read))
    emails = sum(planned.follow_ups.count(EMAILS.name) for planned in workload if planned.runs)
    return found + [job(owner, "email.send", EMAILS.name)] * emails


def letters_of(workload: Workload) -> list[Letter]:
    dead = [
        Letter(QUEUES[queue], f"jobs.{queue}.dlt/0/{number}", b"", b"", {}, {"organizationId": "any"}, AT)
        for queue, count in workload.dead().items()
        for number in range(count)
    ]
    return dead + [Letter(EMAILS, "jobs.emails.dlt/0/0", b"", value, {}, None, AT) for value in GARBAGE]


def arrived(workload: Workload) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    addresses = sorted(workload.mail().elements())
    mail: list[dict[str, Any]] = [
        {"id": f"<{number}>", "to": [address], "subject": "", "attachments": []}
        for number, address in enumerate(addresses)
    ]
    mail[0]["attachments"] = [{"name": "report.pdf", "starts": "%PDF"}]
    mail[1]["attachments"] = [{"name": "report.xlsx", "starts": "PK\x03\x04"}]
    events = [
        {"path": path, "id": str(number)} for number, path in enumerate(sorted(workload.posts().elements()))
    ]
    busy = workload.organizations.busy
    requests = {f"/{busy}/{name}": 3 for name in FLAKY} | {f"/{busy}/{GONE}": 8}
    return mail, {"events": events, "forged": 0, "requests": requests}


def write_files(workload: Workload, folder: Path) -> None:
    store, (noisy, busy, quiet) = artifacts(), workload.organizations
    for place, count in workload.records.items():
        owner, _, name = place.partition("/")
        for number in range(count):
            store.write(owner, f"{name}/{number}.json", b"{}")
    store.write(quiet, f"stripe/events/{STRIPE_EVENT}.json", b"{}")
    store.write(busy, "reports/one.pdf", b"%PDF-1.4")
    store.write(quiet, "reports/two.xlsx", b"")
    with ZipFile(folder / quiet / "reports/two.xlsx", "w") as archive:
        archive.writestr("workbook.xml", "")
    for owner in (noisy, busy):
        store.write(owner, "forecasts/one.csv", b"date,balance\n" + b"2025-07-01,1\n" * 30)
    for owner in workload.organizations:
        (folder / owner / "tmp/last-week.bin").unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("artifacts")
    load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARTIFACT_DIR", str(folder))
        workload = plan(Organizations.of_run("1a2b"), RECEIVER, "whsec_test", AT)
        write_files(workload, folder)
    mail, webhooks = arrived(workload)
    return Scene(workload, Evidence(jobs_of(workload), letters_of(workload), mail, webhooks, folder))


def test_a_run_in_which_all_went_well_meets_every_expectation(whole: Scene) -> None:
    assert missed(checks(whole.workload, whole.evidence)) == []


def test_the_workload_is_as_large_and_as_varied_as_it_should_be(whole: Scene) -> None:
    completed = whole.workload.completed()
    assert completed.total() >= 300
    assert set(completed) == set(QUEUES)
    assert {planned.publication.organization_id for planned in whole.workload} == set(
        whole.workload.organizations
    )
    # What admission lets through at once; more would wait for the limit, not for the work.
    assert completed["emails"] < 90
    assert completed["ai-processing"] <= 8


def lose_a_mail(evidence: Evidence) -> Evidence:
    return replace(evidence, mail=evidence.mail[:-1])


def repeat_a_mail(evidence: Evidence) -> Evidence:
    return replace(evidence, mail=[*evidence.mail[:-1], evidence.mail[0]])


def repeat_an_event(evidence: Evidence) -> Evidence:
    webhooks = copy.deepcopy(evidence.webhooks)
    webhooks["events"].append(webhooks["events"][0])
    return replace(evidence, webhooks=webhooks)


def forge_an_event(evidence: Evidence) -> Evidence:
    return replace(evidence, webhooks={**evidence.webhooks, "forged": 1})


def let_a_job_die(evidence: Evidence) -> Evidence:
    return replace(evidence, jobs=[*evidence.jobs[:-1], replace(evidence.jobs[-1], status=Status.DEAD)])


def forget_an_end(evidence: Evidence) -> Evidence:
    return replace(evidence, jobs=[*evidence.jobs[:-1], replace(evidence.jobs[-1], status=Status.RUNNING)])


def change_poison(evidence: Evidence) -> Evidence:
    return replace(
        evidence, letters=[*evidence.letters[:-1], replace(evidence.letters[-1], value=b"changed")]
    )


def starve_the_quiet(evidence: Evidence) -> Evidence:
    starved = [
        replace(one, queue_time_ms=9000.0) if one.organization_id == "bakery-1a2b" else one
        for one in evidence.jobs
    ]
    return replace(evidence, jobs=starved)


def misread_an_invoice(evidence: Evidence) -> Evidence:
    (index, *_) = [n for n, one in enumerate(evidence.jobs) if one.job_type == "document.classify"]
    wrong = replace(evidence.jobs[index], output={**evidence.jobs[index].output, "total": 1.0})
    return replace(evidence, jobs=[*evidence.jobs[:index], wrong, *evidence.jobs[index + 1 :]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lose_a_mail, "e-mails received by the mail server"),
        (lose_a_mail, "recipients with too few or too many e-mails"),
        (repeat_a_mail, "Message-IDs among them"),
        (repeat_an_event, "signed webhooks taken by the receiver"),
        (repeat_an_event, "paths with too few or too many events"),
        (forge_an_event, "webhooks whose signature did not fit"),
        (let_a_job_die, "emails: jobs completed"),
        (let_a_job_die, "jobs that stay dead (a forged Stripe event)"),
        (forget_an_end, "jobs without an end"),
        (change_poison, "bytes that are no Avro, now dead letters and unchanged"),
        (starve_the_quiet, "quiet organization: longest wait below the flood's median"),
        (misread_an_invoice, "invoices classified with the right number and total"),
    ],
)
def test_what_goes_wrong_is_named(whole: Scene, change: Callable[[Evidence], Evidence], named: str) -> None:
    assert named in [check.what for check in checks(whole.workload, change(whole.evidence)) if not check.met]


def test_nothing_at_all_meets_no_expectation_of_something(whole: Scene, tmp_path: Path) -> None:
    nothing = Evidence([], [], [], {"events": [], "forged": 0, "requests": {}}, tmp_path)
    met = {check.what for check in checks(whole.workload, nothing) if check.met}
    assert met == {"webhooks whose signature did not fit", "jobs without an end"}
