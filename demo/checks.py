"""What should have happened, held against what did, in the store and outside of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from zipfile import is_zipfile

from demo.inputs import INVOICE_TOTAL
from demo.workload import FLAKY, GARBAGE, GONE, HORIZON_DAYS, SCANS, STRIPE_EVENT, Workload
from streams.queues import QUEUES
from streams.replay import Letter
from tracking.jobs import Job
from tracking.states import FINAL, Status


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation; it is met when what was found equals what was expected."""

    what: str
    expected: object
    found: object

    @property
    def met(self) -> bool:
        return self.expected == self.found

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}."


def missed(checks: Iterable[Check]) -> list[str]:
    """Return a sentence for each expectation that was not met."""
    return [str(check) for check in checks if not check.met]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What happened: jobs out of the store, dead letters, messages and events that arrived, files written."""

    jobs: Sequence[Job]
    letters: Sequence[Letter]
    mail: Sequence[dict[str, Any]]
    webhooks: dict[str, Any]
    artifacts: Path

    def of_type(self, job_type: str) -> list[Job]:
        """Return the completed jobs of a type."""
        return [job for job in self.jobs if job.job_type == job_type and job.status == Status.COMPLETED]

    def files(self, organization: str, pattern: str) -> list[Path]:
        """Return the artifacts of an organization whose name fits a pattern."""
        return sorted((self.artifacts / organization).glob(pattern))


@dataclass(frozen=True, slots=True)
class Spread:
    """How some times are spread, in milliseconds."""

    p50: float
    p95: float
    longest: float


def spread(times: Iterable[float | None]) -> Spread | None:
    """Return how the times that were measured are spread, or None when none was."""
    known = [time for time in times if time is not None]
    if not known:
        return None
    p95 = quantiles(known, n=20, method="inclusive")[-1] if len(known) > 1 else known[0]
    return Spread(median(known), p95, max(known))


def flood_and_quiet(workload: Workload, evidence: Evidence) -> tuple[Spread | None, Spread | None]:
    """Return how long the webhooks of the flooding and of the quiet organization waited."""
    noisy, _, quiet = workload.organizations
    delivered = evidence.of_type("webhook.deliver")
    waits = [
        spread(job.queue_time_ms for job in delivered if job.organization_id == organization)
        for organization in (noisy, quiet)
    ]
    return waits[0], waits[1]


def checks(workload: Workload, evidence: Evidence) -> list[Check]:
    """Return every expectation with what was found."""
    return [
        *_store(workload, evidence),
        *_failures(workload, evidence),
        *_fairness(workload, evidence),
        *_mail(workload, evidence),
        *_webhooks(workload, evidence),
        *_documents(workload, evidence),
        *_files(workload, evidence),
    ]


def _store(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    completed = Counter(job.queue_name for job in evidence.jobs if job.status == Status.COMPLETED)
    expected = workload.completed()
    for queue in QUEUES:
        yield Check(f"{queue}: jobs completed", expected[queue], completed[queue])


def _failures(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    third = [job for job in evidence.of_type("webhook.deliver") if (job.attempt, job.replay_id) == (3, None)]
    yield Check("webhooks that failed twice and completed on attempt 3", len(FLAKY), len(third))
    expected = workload.dead()
    letters = Counter(letter.queue.name for letter in evidence.letters if letter.job is not None)
    for queue in sorted({*expected, *letters}):
        yield Check(f"{queue}: dead letters of jobs", expected[queue], letters[queue])
    replayed = [job for job in evidence.jobs if job.replay_id and job.status == Status.COMPLETED]
    yield Check(
        "dead jobs that completed after their replay",
        len(workload.with_fate("completes after a replay")),
        len(replayed),
    )
    dead = [job for job in evidence.jobs if job.status == Status.DEAD]
    yield Check(
        "jobs that stay dead (a forged Stripe event)",
        len(workload.with_fate("stays dead")),
        len(dead),
    )
    yield Check("jobs without an end", 0, sum(job.status not in FINAL for job in evidence.jobs))
    poison = Counter(letter.value for letter in evidence.letters if letter.job is None)
    unchanged = sum((poison & Counter(GARBAGE)).values())
    yield Check("bytes that are no Avro, now dead letters and unchanged", len(GARBAGE), unchanged)


def _fairness(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    flood, quiet = flood_and_quiet(workload, evidence)
    shorter = flood is not None and quiet is not None and quiet.longest < flood.p50
    yield Check("quiet organization: longest wait below the flood's median", True, shorter)


def _mail(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    expected = workload.mail()
    arrived = Counter(address for message in evidence.mail for address in message["to"])
    yield Check("e-mails received by the mail server", expected.total(), len(evidence.mail))
    yield Check("Message-IDs among them", expected.total(), len({message["id"] for message in evidence.mail}))
    wrong = sorted(address for address in {*expected, *arrived} if expected[address] != arrived[address])
    yield Check("recipients with too few or too many e-mails", "none", ", ".join(wrong) or "none")
    yield Check("e-mails for the reminder that was published twice", 1, arrived["impatient@acme.example"])
    yield Check("e-mails for the cron slot that was ticked twice", 1, arrived["books@globex.example"])
    attached = Counter(
        attachment["name"].rpartition(".")[2]
        for message in evidence.mail
        for attachment in message["attachments"]
        if attachment["starts"] in ("%PDF", "PK\x03\x04")
    )
    yield Check("reports attached to e-mails", "1 pdf, 1 xlsx", _listed(attached))


def _webhooks(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    events = evidence.webhooks["events"]
    expected = workload.posts()
    taken = Counter(event["path"] for event in events)
    yield Check("signed webhooks taken by the receiver", expected.total(), len(events))
    yield Check("webhook-ids among them", expected.total(), len({event["id"] for event in events}))
    wrong = sorted(path for path in {*expected, *taken} if expected[path] != taken[path])
    yield Check("paths with too few or too many events", "none", ", ".join(wrong) or "none")
    yield Check("webhooks whose signature did not fit", 0, evidence.webhooks["forged"])
    busy, requests = workload.organizations.busy, evidence.webhooks["requests"]
    tries = [requests.get(f"/{busy}/{name}", 0) for name in FLAKY]
    yield Check("requests to each path that failed twice", [3] * len(FLAKY), tries)
    gone = len([job for job in workload if job.posts_to == f"/{busy}/{GONE}"])
    yield Check("requests to the path that was gone", 2 * gone, requests.get(f"/{busy}/{GONE}", 0))


def _documents(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    read = {
        job.output["invoiceNumber"]
        for job in evidence.of_type("document.classify")
        if (job.output["category"], job.output["total"]) == ("invoice", INVOICE_TOTAL)
    }
    unread = ", ".join(sorted(workload.invoices - read)) or "none"
    yield Check("invoices classified with the right number and total", len(workload.invoices), len(read))
    yield Check("invoices that were not", "none", unread)
    methods = Counter(job.output["method"] for job in evidence.of_type("document.ocr"))
    yield Check("how they were read", f"{SCANS} ocr, {len(workload.invoices) - SCANS} text", _listed(methods))


def _files(workload: Workload, evidence: Evidence) -> Iterator[Check]:
    reports = [file for owner in workload.organizations for file in evidence.files(owner, "reports/*")]
    genuine = Counter(file.suffix[1:] for file in reports if _is_what_it_says(file))
    yield Check("report files written", "1 pdf, 1 xlsx", _listed(genuine))
    found = {
        place: len(evidence.files(place.partition("/")[0], f"{place.partition('/')[2]}/*.json"))
        for place in workload.records
    }
    yield Check("records copied from QuickBooks and Stripe", workload.records.total(), sum(found.values()))
    events = evidence.files(workload.organizations.quiet, "stripe/events/*.json")
    yield Check("signed Stripe events kept", [STRIPE_EVENT], [file.stem for file in events])
    incomes = {f"{job.output['income']:,.2f}" for job in evidence.of_type("ai.analyze_financials")}
    yield Check("income found by the financial analyses", [f"{workload.income:,.2f}"], sorted(incomes))
    forecasts = [
        len(file.read_text().splitlines()) - 1
        for owner in workload.organizations
        for file in evidence.files(owner, "forecasts/*.csv")
    ]
    yield Check("days in each cash flow forecast", [HORIZON_DAYS] * 2, forecasts)
    kept = [[file.name for file in evidence.files(owner, "tmp/*")] for owner in workload.organizations]
    clean = sum(names == ["today.bin"] for names in kept)
    yield Check("organizations whose tmp/ lost last week's file only", len(kept), clean)


def _is_what_it_says(file: Path) -> bool:
    return is_zipfile(file) if file.suffix == ".xlsx" else file.read_bytes().startswith(b"%PDF")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
