"""What is published, and what should become of each job: three organizations, nine queues, real input."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import cycle
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from demo import inputs
from streams.agents.ai import AnalyzeFinancials, PredictCashFlow
from streams.agents.critical import RaiseAlert
from streams.agents.documents import OcrDocument
from streams.agents.emails import BulkRecipient, SendBulkEmail, SendEmail
from streams.agents.integrations import SyncQuickBooks, SyncStripe
from streams.agents.maintenance import CleanUp
from streams.agents.reports import GenerateReport
from streams.agents.scheduled import ScheduleTick
from streams.agents.webhooks import DeliverWebhook, ReceiveStripeEvent
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Payload
from streams.publication import Publication

FLOOD = 250
SCANS = 4
HORIZON_DAYS = 30
FIRST_DAY, LAST_DAY = date(inputs.YEAR, 1, 1), date(inputs.YEAR, 6, 30)
STRIPE_EVENT = "evt_demo_paid"
GARBAGE = (b'{"plain": "JSON"}', b"\xc3\x01 cut", b"\xff" * 64)
FLAKY = ("ledger", "payroll")
"""Paths that fail twice: so few, as all are of one host, and five failures of a host in a row are an outage."""
GONE = "orders-old"

Fate = Literal[
    "completes", "completes on attempt 3", "completes after a replay", "stays dead", "is a duplicate"
]


class Organizations(NamedTuple):
    """Who publishes: one floods, one is busy, one is quiet."""

    noisy: str
    busy: str
    quiet: str

    @classmethod
    def of_run(cls, run: str) -> "Organizations":
        """Return names that no other run uses, since topics and store may hold the jobs of earlier ones."""
        return cls(f"acme-{run}", f"globex-{run}", f"bakery-{run}")


@dataclass(frozen=True, slots=True)
class Planned:
    """A job to be published, what should become of it, and what should be seen of it outside."""

    publication: Publication
    fate: Fate = "completes"
    follow_ups: tuple[str, ...] = ()
    """The queue of each job that it asks for."""
    mail_to: tuple[str, ...] = ()
    """The recipient of each message that it or its follow-ups send."""
    posts_to: str | None = None
    """The receiver's path that takes its event."""

    @property
    def queue(self) -> str:
        return HANDLERS[TYPE_OF_PAYLOAD[type(self.publication.payload)]].queue.name

    @property
    def runs(self) -> bool:
        """Whether it completes in the end."""
        return self.fate not in ("stays dead", "is a duplicate")


@dataclass(slots=True)
class Workload:
    """All that is published, by the way it takes."""

    organizations: Organizations
    jobs: list[Planned] = field(default_factory=list)
    flood: list[Planned] = field(default_factory=list)
    quiet: list[Planned] = field(default_factory=list)
    """Published right behind the flood."""
    lines: list[Planned] = field(default_factory=list)
    """Published as lines of JSON by `streams publish emails`, right behind bytes that are no job."""
    report: Planned | None = None
    """Published by `streams publish reports report.generate --data @FILE`."""
    missing: dict[str, str] = field(default_factory=dict)
    """Number of an invoice that its job will not find, to the URI it will look at."""
    invoices: set[str] = field(default_factory=set)
    """Number of every invoice that is to be read."""
    records: Counter[str] = field(default_factory=Counter)
    """`organization/system/collection` to how many records are to be copied."""
    income: float = 0.0

    def __iter__(self) -> Iterator[Planned]:
        yield from self.jobs
        yield from self.flood
        yield from self.quiet
        yield from self.lines
        if self.report is not None:
            yield self.report

    def with_fate(self, *fates: Fate) -> list[Planned]:
        """Return the jobs that should end so."""
        return [job for job in self if job.fate in fates]

    def completed(self) -> Counter[str]:
        """Return how many jobs of each queue should complete in the end, follow-ups included."""
        queues: Counter[str] = Counter()
        for job in self:
            if job.runs:
                queues.update((job.queue, *job.follow_ups))
        return queues

    def dead(self) -> Counter[str]:
        """Return how many jobs of each queue should become dead letters."""
        return Counter(job.queue for job in self.with_fate("completes after a replay", "stays dead"))

    def finished_before_replay(self) -> int:
        """Return how many jobs should have completed or died when nothing was replayed yet."""
        waiting = self.with_fate("completes after a replay")
        return (
            self.completed().total() + self.dead().total() - sum(1 + len(job.follow_ups) for job in waiting)
        )

    def mail(self) -> Counter[str]:
        """Return how many messages each recipient should get."""
        return Counter(address for job in self if job.runs for address in job.mail_to)

    def posts(self) -> Counter[str]:
        """Return how many events each path of the receiver should take."""
        return Counter(job.posts_to for job in self if job.runs and job.posts_to)


def plan(organizations: Organizations, receiver: str, stripe_secret: str, now: datetime) -> Workload:
    """Make the inputs, and return what is to be published; `receiver` is the address of the webhooks' receiver."""
    workload = Workload(organizations)
    workload.jobs += _documents(workload)
    workload.jobs += _emails(workload)
    workload.jobs += _messages_that_fail(organizations, receiver)
    workload.jobs += _stripe_events(organizations, stripe_secret, now)
    workload.jobs += _alerts(organizations, receiver)
    workload.jobs += _finances(workload)
    workload.jobs += _syncs(workload)
    workload.jobs += _housekeeping(organizations)
    workload.jobs += _schedule(organizations, now)
    workload.jobs += _webhooks(organizations.busy, receiver, 5)
    workload.flood = _webhooks(organizations.noisy, receiver, FLOOD)
    workload.quiet = _webhooks(organizations.quiet, receiver, 5)
    workload.lines = [
        _email(organizations.quiet, "document_processed", f"customer-{number}@bakery.example")
        for number in range(8)
    ]
    workload.report = _report(organizations.quiet, "transactions", "xlsx", "owner@bakery.example")
    return workload


def _documents(workload: Workload) -> Iterator[Planned]:
    _, busy, quiet = workload.organizations
    for number in range(12):
        owner = (busy, quiet)[number % 2]
        name = f"INV-{inputs.YEAR}-{number + 1:04}"
        uri = inputs.upload_invoice(owner, name, scan=number if number < SCANS else None)
        workload.invoices.add(name)
        yield Planned(
            Publication(OcrDocument(document_uri=uri, classify=True), owner),
            follow_ups=("document-processing",),
        )
    for number in range(3):
        name = f"INV-{inputs.YEAR}-{900 + number:04}"
        uri = workload.missing[name] = f"artifact://{busy}/uploads/{name}.pdf"
        workload.invoices.add(name)
        yield Planned(
            Publication(OcrDocument(document_uri=uri, classify=True), busy),
            fate="completes after a replay",
            follow_ups=("document-processing",),
        )


_VARIABLES = {
    "amount": "1,488.44 USD",
    "category": "invoice",
    "company": "Northwind Accounting",
    "deadline": "The quarterly sales tax return",
    "document": "INV-2025-0007.pdf",
    "due": "2025-07-31",
    "invoice": "S-2025-0117",
    "missing": "bank statements of June",
    "name": "Ada",
    "url": "https://app.example.com/documents",
}


def _email(organization: str, template: str, to: str, **options: str) -> Planned:
    email = SendEmail(template=template, to=[to], variables=_VARIABLES)
    return Planned(Publication(email, organization, **options), mail_to=(to,))  # type: ignore[arg-type]


def _emails(workload: Workload) -> Iterator[Planned]:
    templates = cycle(("welcome", "invoice_due", "payment_received", "deadline_reminder"))
    for organization in workload.organizations:
        company = organization.partition("-")[0]
        for number in range(8):
            yield _email(organization, next(templates), f"client-{number}@{company}.example")
    noisy, busy, _ = workload.organizations
    staff = tuple(f"employee-{number}@globex.example" for number in range(15))
    bulk = SendBulkEmail(
        template="deadline_reminder",
        recipients=[BulkRecipient(to=to, variables={"name": to.partition("@")[0]}) for to in staff],
        variables=_VARIABLES,
    )
    yield Planned(Publication(bulk, busy), follow_ups=("emails",) * len(staff), mail_to=staff)
    # A producer that got no answer publishes again, with the same key.
    once = _email(noisy, "invoice_due", "impatient@acme.example", idempotency_key="invoice-due-4711")
    yield once
    yield Planned(once.publication, fate="is a duplicate")


def _webhook(
    organization: str, receiver: str, name: str, fate: Fate = "completes", number: int = 0
) -> Planned:
    path = f"/{organization}/{name}"
    event = DeliverWebhook(
        url=receiver + path, event_type="order.created", body=f'{{"order": {number}, "total": "99.50"}}'
    )
    return Planned(Publication(event, organization), fate=fate, posts_to=path)


def _webhooks(organization: str, receiver: str, count: int) -> list[Planned]:
    return [_webhook(organization, receiver, "orders", number=number) for number in range(count)]


def _messages_that_fail(organizations: Organizations, receiver: str) -> Iterator[Planned]:
    for name in FLAKY:
        yield _webhook(organizations.busy, receiver, name, "completes on attempt 3")
    for number in range(4):
        yield _webhook(organizations.busy, receiver, GONE, "completes after a replay", number)


def _stripe_events(organizations: Organizations, secret: str, now: datetime) -> Iterator[Planned]:
    customer = "clara@bakery.example"
    body = inputs.paid_invoice(STRIPE_EVENT, customer, now)
    for signed_with, fate in ((secret, "completes"), ("whsec_of_somebody_else", "stays dead")):
        received = ReceiveStripeEvent(
            body=body, signature=inputs.stripe_signature(body, signed_with, now), received_at=now
        )
        yield Planned(
            Publication(received, organizations.quiet),
            fate=fate,  # type: ignore[arg-type]
            follow_ups=("emails",),
            mail_to=(customer,),
        )


def _alerts(organizations: Organizations, receiver: str) -> Iterator[Planned]:
    noisy, busy, _ = organizations
    path = f"/{noisy}/alerts"
    alert = {"severity": "critical", "title": "Payments are failing", "message": "12 of 40 in five minutes."}
    yield Planned(
        Publication(
            RaiseAlert(**alert, recipients=["on-call@acme.example"], webhook_url=receiver + path),
            noisy,
            priority=1,
        ),
        mail_to=("on-call@acme.example",),
        posts_to=path,
    )
    yield Planned(
        Publication(RaiseAlert(**alert, recipients=["on-call@globex.example"]), busy, priority=1),
        mail_to=("on-call@globex.example",),
    )


def _finances(workload: Workload) -> Iterator[Planned]:
    noisy, busy, quiet = workload.organizations
    bookings = inputs.bookings()
    workload.income = sum(one.amount for one in bookings if one.amount > 0)
    period = {"period_start": FIRST_DAY, "period_end": LAST_DAY}
    uri = inputs.upload_bookings(quiet, bookings)
    yield Planned(Publication(AnalyzeFinancials(transactions=bookings, **period), busy))
    yield Planned(Publication(AnalyzeFinancials(transactions_uri=uri, **period), quiet))
    for organization in (noisy, busy):
        forecast = PredictCashFlow(transactions=bookings, closing_balance=64_000, horizon_days=HORIZON_DAYS)
        yield Planned(Publication(forecast, organization))
    yield _report(busy, "profit_and_loss", "pdf", "cfo@globex.example")


def _report(
    organization: str,
    kind: Literal["profit_and_loss", "transactions"],
    form: Literal["pdf", "xlsx"],
    to: str,
) -> Planned:
    report = GenerateReport(
        kind=kind,
        format=form,
        title=f"First half of {inputs.YEAR}",
        period_start=FIRST_DAY,
        period_end=LAST_DAY,
        rows=inputs.report_rows(inputs.bookings()),
        deliver_to=[to],
    )
    return Planned(Publication(report, organization), follow_ups=("emails",), mail_to=(to,))


def _syncs(workload: Workload) -> Iterator[Planned]:
    noisy, busy, quiet = workload.organizations
    for organization, entity, count in ((busy, "Invoice", 40), (busy, "Customer", 15), (quiet, "Vendor", 10)):
        uri = inputs.quickbooks_export(organization, entity, count)
        workload.records[f"{organization}/quickbooks/{entity}"] = count
        yield Planned(Publication(SyncQuickBooks(entity=entity, export_uri=uri), organization))
    for organization, count in ((noisy, 40), (quiet, 10)):
        uri = inputs.stripe_export(organization, "charges", count)
        workload.records[f"{organization}/stripe/charges"] = count
        yield Planned(Publication(SyncStripe(collection="charges", export_uri=uri), organization))


def _housekeeping(organizations: Iterable[str]) -> Iterator[Planned]:
    for organization in organizations:
        inputs.leftovers(organization)
        yield Planned(Publication(CleanUp(prefixes=["tmp/"], older_than_hours=48), organization))


def _schedule(organizations: Organizations, now: datetime) -> Iterator[Planned]:
    """Tick the latest slot of a schedule twice, as two schedulers would: its key lets it run once."""
    schedule, expression, zone = "weekday-reminder", "30 7 * * 1-5", ZoneInfo("Europe/Berlin")
    slot: datetime = next(CronSim(expression, now.astimezone(zone), reverse=True)).astimezone(UTC)
    reminder: Payload = SendEmail(
        template="deadline_reminder", to=["books@globex.example"], variables=_VARIABLES
    )
    tick = ScheduleTick(
        schedule=schedule,
        slot=slot,
        job_type="email.send",
        payload_json=reminder.model_dump_json(by_alias=True),
    )
    publication = Publication(tick, organizations.busy, idempotency_key=f"{schedule}@{slot:%Y-%m-%dT%H:%MZ}")
    yield Planned(publication, follow_ups=("emails",), mail_to=("books@globex.example",))
    yield Planned(publication, fate="is a duplicate")


def line_of(job: Planned) -> dict[str, object]:
    """Return a job as `streams publish` reads it from a line."""
    publication = job.publication
    return {
        "type": TYPE_OF_PAYLOAD[type(publication.payload)],
        "organizationId": publication.organization_id,
        "payload": publication.payload.model_dump(mode="json", by_alias=True),
    }
