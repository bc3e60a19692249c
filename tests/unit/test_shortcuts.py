"""The functions that queue work: one per job type, with the fields of its payload, and nothing quoted."""

import inspect
import types
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_type_hints

import pytest
from pydantic.fields import FieldInfo

from streams import shortcuts
from streams.agents import MODULES
from streams.agents.ai import AnalyzeFinancials, PredictCashFlow, Transaction
from streams.agents.critical import RaiseAlert
from streams.agents.documents import ClassifyDocument, OcrDocument
from streams.agents.emails import BulkRecipient, SendBulkEmail, SendEmail
from streams.agents.integrations import SyncQuickBooks, SyncStripe
from streams.agents.maintenance import CleanUp
from streams.agents.reports import GenerateReport, ReportRow
from streams.agents.scheduled import ScheduleTick
from streams.agents.webhooks import DeliverWebhook, ReceiveQuickBooksEvent, ReceiveStripeEvent
from streams.errors import InvalidJob
from streams.jobs import HANDLERS, Payload
from streams.publication import Publication

AT = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
DAY = date(2026, 3, 1)
SIGNED: dict[str, Any] = {"body": b"{}", "signature": "t=1,v1=00", "received_at": AT}

CALLS: dict[Callable[..., str], Payload] = {
    shortcuts.queue_critical_alert: RaiseAlert(
        severity="error", title="Disk", message="full", recipients=["ops@example.org"]
    ),
    shortcuts.queue_document_ocr: OcrDocument(
        document_uri="artifact://acme/a.pdf", language="de", classify=True
    ),
    shortcuts.queue_document_classification: ClassifyDocument(text_uri="artifact://acme/text/a.txt"),
    shortcuts.queue_financial_analysis: AnalyzeFinancials(
        period_start=DAY, period_end=DAY, transactions=[Transaction(date=DAY, amount=-4.5)]
    ),
    shortcuts.queue_cash_flow_prediction: PredictCashFlow(
        horizon_days=30, transactions_uri="artifact://acme/t.csv", closing_balance=12.5
    ),
    shortcuts.queue_report: GenerateReport(
        kind="cash_flow",
        format="xlsx",
        title="March",
        period_start=DAY,
        period_end=DAY,
        currency="EUR",
        rows=[ReportRow(date=DAY, account="Sales", amount_minor=100)],
        deliver_to=["cfo@example.org"],
    ),
    shortcuts.queue_email: SendEmail(
        template="welcome", to=["ada@example.org"], variables={"name": "Ada"}, reply_to="help@example.org"
    ),
    shortcuts.queue_bulk_email: SendBulkEmail(
        template="welcome", recipients=[BulkRecipient(to="ada@example.org", variables={"name": "Ada"})]
    ),
    shortcuts.queue_webhook: DeliverWebhook(url="https://example.org/in", event_type="a.b", body="{}"),
    shortcuts.queue_stripe_event: ReceiveStripeEvent(**SIGNED),
    shortcuts.queue_quickbooks_event: ReceiveQuickBooksEvent(**SIGNED),
    shortcuts.queue_quickbooks_sync: SyncQuickBooks(entity="Invoice"),
    shortcuts.queue_stripe_sync: SyncStripe(collection="charges", export_uri="artifact://acme/c.csv"),
    shortcuts.queue_maintenance: CleanUp(prefixes=["tmp/"], older_than_hours=24),
    shortcuts.queue_schedule_tick: ScheduleTick(
        schedule="nightly", slot=AT, job_type="quickbooks.sync", payload_json='{"entity": "Invoice"}'
    ),
}
"""Each function, and a payload that it shall publish."""


class Recorder:
    """Stands in for the client and remembers what was published."""

    def __init__(self) -> None:
        self.published: list[Publication] = []

    def publish(self, payload: Payload, *, organization_id: str, **options: Any) -> str:
        self.published.append(Publication(payload, organization_id, **options))
        return f"job-{len(self.published)}"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recording = Recorder()
    monkeypatch.setattr(shortcuts, "client", lambda: recording)
    return recording


def stated(payload: Payload) -> dict[str, Any]:
    """Return the fields that a payload was made with."""
    return {name: getattr(payload, name) for name in payload.model_fields_set}


def test_there_is_one_function_for_each_job_type() -> None:
    defined = {
        one
        for name, one in vars(shortcuts).items()
        if name.startswith("queue_") and isinstance(one, types.FunctionType)
    }
    assert defined == set(CALLS)
    shipped = {one.payload for one in HANDLERS.values() if one.function.__module__ in MODULES}
    assert sorted(type(payload).__name__ for payload in CALLS.values()) == sorted(p.__name__ for p in shipped)
    for function, payload in CALLS.items():
        (job_type,) = [one.job_type for one in HANDLERS.values() if one.payload is type(payload)]
        assert f"`{job_type}`" in (function.__doc__ or "")


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_a_call_publishes_the_payload_with_its_options(
    recorder: Recorder, function: Callable[..., str]
) -> None:
    options: dict[str, Any] = {
        "idempotency_key": "k-1", "job_id": "j-1", "ordering_key": "o-1", "priority": 2, "run_at": AT,
        "max_attempts": 7, "delay": None,
    }  # fmt: skip
    assert function(organization_id="acme", **stated(CALLS[function])) == "job-1"
    assert function(organization_id="acme", **stated(CALLS[function]), **options) == "job-2"
    assert recorder.published == [
        Publication(CALLS[function], "acme"),
        Publication(CALLS[function], "acme", **options),
    ]


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_a_signature_has_the_fields_of_its_payload_and_their_defaults(function: Callable[..., str]) -> None:
    parameters = inspect.signature(function).parameters
    names = set(parameters) - {"organization_id", "options"}
    known = type(CALLS[function]).model_fields
    assert names == set(known)
    assert not names & set(shortcuts.Options.__annotations__)
    assert {one.kind for name, one in parameters.items() if name != "options"} == {
        inspect.Parameter.KEYWORD_ONLY
    }
    assert {name: parameters[name].default for name in names} == {
        name: _shown_default(field) for name, field in known.items()
    }
    hints = get_type_hints(function)
    same = {
        name
        for name, field in known.items()
        if field.default_factory is None and not str(field.annotation).startswith("list")
    }
    assert {name: hints[name] for name in same} == {name: known[name].annotation for name in same}


def _shown_default(field: FieldInfo) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    if field.default_factory is list:
        return ()
    return None if field.default_factory is dict else field.default


def test_the_options_are_those_of_a_publication() -> None:
    expected = {
        one.name: one.type for one in fields(Publication) if one.name not in ("payload", "organization_id")
    }
    assert get_type_hints(shortcuts.Options) == expected


def test_a_payload_that_does_not_fit_is_refused_without_its_values(recorder: Recorder) -> None:
    with pytest.raises(InvalidJob) as caught:
        shortcuts.queue_email(organization_id="acme", template="welcome", to=["canary-3f9a", "b@example.org"])
    assert str(caught.value) == (
        "the payload does not fit email.send: to: Value error, expected addresses of the form local@domain, "
        "without a display name"
    )
    assert caught.value.__cause__ is None
    assert "canary" not in repr(caught.value)
    with pytest.raises(InvalidJob, match=r"the payload does not fit ai\.predict_cash_flow: horizon_days: "):
        shortcuts.queue_cash_flow_prediction(organization_id="acme", horizon_days=0)
    assert recorder.published == []


def test_an_unknown_option_is_a_mistake_of_the_caller(recorder: Recorder) -> None:
    with pytest.raises(TypeError, match="dealy"):
        shortcuts.queue_stripe_sync(
            organization_id="acme",
            collection="charges",
            dealy=timedelta(1),  # type: ignore[call-arg]
        )


class Opened:
    """Counts how often a client is opened and closed."""

    opened = closed = 0

    def __init__(self) -> None:
        Opened.opened += 1

    def close(self) -> None:
        Opened.closed += 1


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "SyncJobs", Opened)
    monkeypatch.setattr(shortcuts, "_clients", {})
    Opened.opened = Opened.closed = 0


@pytest.mark.usefixtures("opening")
def test_a_process_opens_one_client_and_a_fork_another(monkeypatch: pytest.MonkeyPatch) -> None:
    shortcuts._close()
    assert (Opened.opened, Opened.closed) == (0, 0)
    first = shortcuts.client()
    assert shortcuts.client() is first
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert shortcuts.client() is not first
    assert Opened.opened == 2
    shortcuts._close()
    assert Opened.closed == 1
