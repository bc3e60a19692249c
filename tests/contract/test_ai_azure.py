"""The providers behind AI_PROVIDER=azure, against a service that speaks chat completions."""

import json
from datetime import date, timedelta
from typing import Any

import pytest

from providers.ai import Record, analyst
from providers.ai.azure import AzureAnalyst
from providers.ai.chat import AzureChat
from providers.classifier import Category, classifier
from providers.classifier.azure import AzureClassifier
from providers.errors import ProviderError, RateLimited, Refused, Unavailable
from tests.scripted import Answer, ScriptedService

KEY = "canary-91be-key"
SECRET_NOTE = "Payment to Jane Roe"
RECORDS = [Record(date(2025, 1, day), -10.0 * day, "rent", SECRET_NOTE) for day in range(1, 11)]
JANUARY = (date(2025, 1, 1), date(2025, 1, 31))


def completion(content: Any, finish_reason: str = "stop") -> Answer:
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    return Answer(200, {"id": "1", "object": "chat.completion", "choices": [choice]})


def chat(service: ScriptedService, **options: Any) -> AzureChat:
    return AzureChat(service.url, KEY, "gpt-4o mini", **options)


def failure(*answers: Answer, **options: Any) -> ProviderError:
    """Return what an analysis raises when the service gives these answers."""
    with ScriptedService(*answers) as service, pytest.raises(ProviderError) as raised:
        AzureAnalyst(chat(service, **options)).analyze(RECORDS, *JANUARY)
    assert service.unused == 0
    error: BaseException | None = raised.value
    while error is not None:
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__
    return raised.value


def test_analysis_sends_figures_and_no_transaction() -> None:
    with ScriptedService(completion({"findings": ["Rent is all there is."]})) as service:
        figures, findings = AzureAnalyst(chat(service)).analyze(RECORDS, *JANUARY)

    assert figures.expenses == 550
    assert (findings.sentences, findings.by) == (["Rent is all there is."], "azure")
    (request,) = service.requests
    assert request.path == "/openai/deployments/gpt-4o%20mini/chat/completions?api-version=2024-10-21"
    assert request.headers["api-key"] == KEY
    body = json.loads(request.body)
    assert body["response_format"] == {"type": "json_object"}
    assert "JSON" in body["messages"][0]["content"]
    assert json.loads(body["messages"][1]["content"])["expenses"] == 550
    assert SECRET_NOTE not in request.body.decode()


def test_prediction_keeps_its_own_numbers() -> None:
    history = [(date(2025, 1, 1) + timedelta(days=day), 1000.0 - 10 * day) for day in range(60)]
    with ScriptedService(completion({"findings": ["Act now."]})) as service:
        forecast, findings = AzureAnalyst(chat(service)).predict(history, 30)
    assert forecast.points[-1].balance == pytest.approx(1000 - 10 * 89, abs=0.01)
    assert findings.sentences == ["Act now."]
    sent = json.loads(json.loads(service.requests[0].body)["messages"][1]["content"])
    assert sent["weekly_balances"][-1]["day"] == "2025-03-31"


def test_classification_takes_the_models_answer() -> None:
    answer = {
        "category": "invoice", "confidence": 0.97, "invoice_number": "A-1", "issued": "2025-03-31",
        "total": 12.5, "currency": "USD", "vendor": None,
    }  # fmt: skip
    with ScriptedService(completion(answer)) as service:
        found = AzureClassifier(chat(service)).classify("Invoice A-1 " + "x" * 50_000)
    assert found.category is Category.INVOICE
    assert (found.fields.invoice_number, found.fields.issued) == ("A-1", date(2025, 3, 31))
    assert len(service.requests[0].body) < 20_000


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "20"}, timedelta(seconds=20)),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, timedelta(milliseconds=1500)),
        ({}, timedelta(seconds=10)),
        ({"Retry-After": "soon"}, timedelta(seconds=10)),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, timedelta(0)),
    ],
)
def test_a_limit_names_its_wait(headers: dict[str, str], wait: timedelta) -> None:
    error = failure(Answer(429, {"error": {"code": "429"}}, headers))
    assert isinstance(error, RateLimited)
    assert error.retry_after == wait


@pytest.mark.parametrize("status", [401, 408, 500, 503])
def test_what_may_succeed_later(status: int) -> None:
    assert isinstance(failure(Answer(status, {"error": {"message": KEY}})), Unavailable)


def test_no_answer_in_time_is_for_later() -> None:
    assert isinstance(failure(Answer(hang=True), timeout=timedelta(milliseconds=100)), Unavailable)


def test_a_filtered_question_is_refused() -> None:
    body = {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
    error = failure(Answer(400, body))
    assert isinstance(error, Refused)
    assert "content_filter/ResponsibleAIPolicyViolation" in str(error)


@pytest.mark.parametrize("reason", ["content_filter", "length"])
def test_an_answer_that_was_cut_is_refused(reason: str) -> None:
    assert isinstance(failure(completion('{"findings": ["half', reason)), Refused)


@pytest.mark.parametrize(
    "answer",
    [
        completion("I cannot do that."),
        completion({"findings": []}),
        completion({"findings": "one"}),
        Answer(200, {"choices": []}),
        Answer(200, b"{"),
    ],
)
def test_an_answer_that_does_not_fit_is_for_later(answer: Answer) -> None:
    error = failure(answer)
    assert isinstance(error, Unavailable)
    assert "cannot do that" not in str(error)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_PROVIDER", "azure")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://example.invalid")
    monkeypatch.setenv("AZURE_OPENAI_DEPLOYMENT", "gpt")
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="AZURE_OPENAI_API_KEY is not set"):
        analyst()
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    assert isinstance(analyst(), AzureAnalyst)
    assert isinstance(classifier(), AzureClassifier)
    monkeypatch.setenv("AI_PROVIDER", "other")
    with pytest.raises(ValueError, match="expected 'local' or 'azure'"):
        analyst()
    with pytest.raises(ValueError, match="expected 'local' or 'azure'"):
        classifier()
