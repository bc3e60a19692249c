"""The Azure OCR provider against a service that speaks Document Intelligence's protocol."""

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from providers.errors import ProviderError, RateLimited, Refused, Unavailable
from providers.ocr import ocr
from providers.ocr.azure import AzureOcr
from tests.scripted import Answer, ScriptedService

KEY = "canary-7f3a-key"
DOCUMENT = b"%PDF-1.7 any bytes"
ACCEPTED = Answer(202, headers={"Operation-Location": "{base}/documentintelligence/results/1?api-version=x"})
RUNNING = Answer(200, {"status": "running"}, {"Retry-After": "3"})
RESULT = {
    "status": "succeeded",
    "createdDateTime": "2025-03-31T10:00:00Z",
    "analyzeResult": {
        "apiVersion": "2024-11-30",
        "modelId": "prebuilt-read",
        "content": "Invoice number: A-1\nTotal 12.50",
        "pages": [
            {
                "pageNumber": 1,
                "lines": [{"content": "Invoice number: A-1"}, {"content": "Total 12.50"}],
                "words": [{"content": "Invoice", "confidence": 0.9}, {"content": "Total", "confidence": 1.0}],
            },
            {"pageNumber": 2, "lines": [], "words": []},
        ],
    },
}


def ignore(fraction: float, note: str) -> None:
    """Take no notice of progress."""


def provider(
    service: ScriptedService, sleep: Callable[[float], None] | None = None, **options: Any
) -> AzureOcr:
    return AzureOcr(service.url, KEY, sleep=sleep or (lambda seconds: None), **options)


def failure(*answers: Answer, **options: Any) -> ProviderError:
    """Return what reading raises when the service gives these answers."""
    with ScriptedService(*answers) as service, pytest.raises(ProviderError) as raised:
        provider(service, **options).read(DOCUMENT, language="en", progress=ignore)
    assert service.unused == 0
    error: BaseException | None = raised.value
    while error is not None:
        assert KEY not in repr(error)
        error = error.__cause__ or error.__context__
    return raised.value


def test_polls_until_the_result_is_there() -> None:
    waits: list[float] = []
    limited = Answer(429, {"error": {"code": "429"}}, {"Retry-After": "7"})
    with ScriptedService(ACCEPTED, RUNNING, limited, Answer(200, RESULT)) as service:
        reading = provider(service, waits.append).read(DOCUMENT, language="de", progress=ignore)

    assert [page.text for page in reading.pages] == ["Invoice number: A-1\nTotal 12.50", ""]
    assert reading.confidence == pytest.approx(0.95)
    assert reading.method == "azure"
    assert waits == [3, 7]
    submit, *polls = service.requests
    assert submit.method == "POST"
    assert submit.path == (
        "/documentintelligence/documentModels/prebuilt-read:analyze?api-version=2024-11-30&locale=de"
    )
    assert submit.body == DOCUMENT
    assert submit.headers["Content-Type"] == "application/octet-stream"
    assert all(request.headers["Ocp-Apim-Subscription-Key"] == KEY for request in service.requests)
    assert {request.path for request in polls} == {"/documentintelligence/results/1?api-version=x"}
    assert len(polls) == 3


def test_a_limit_names_its_wait() -> None:
    error = failure(Answer(429, {"error": {"code": "429"}}, {"Retry-After": "17"}))
    assert isinstance(error, RateLimited)
    assert error.retry_after == timedelta(seconds=17)


@pytest.mark.parametrize("status", [500, 502, 503, 408])
def test_server_errors_are_for_later(status: int) -> None:
    assert isinstance(failure(Answer(status, b"<html>")), Unavailable)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_not_the_documents_fault(status: int) -> None:
    error = failure(Answer(status, {"error": {"code": "401"}}))
    assert isinstance(error, Unavailable)
    assert "check the key" in str(error)


def test_a_refusal_names_the_codes_and_not_the_prose() -> None:
    body = {
        "error": {
            "code": "InvalidRequest",
            "message": f"quoting {KEY}",
            "innererror": {"code": "InvalidContent", "message": "corrupted"},
        }
    }
    error = failure(Answer(400, body))
    assert isinstance(error, Refused)
    assert str(error) == "Azure Document Intelligence answered 400 InvalidRequest/InvalidContent"


def test_no_answer_in_time_is_for_later() -> None:
    error = failure(Answer(hang=True), timeout=timedelta(milliseconds=100))
    assert isinstance(error, Unavailable)
    assert "in time" in str(error)


def test_nobody_there_is_for_later() -> None:
    with ScriptedService() as service:
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        provider(service).read(DOCUMENT, language="en", progress=ignore)


def test_a_failed_analysis_is_refused() -> None:
    failed = Answer(200, {"status": "failed", "error": {"code": "InvalidRequest"}})
    assert isinstance(failure(ACCEPTED, failed), Refused)


def test_an_analysis_that_failed_inside_the_service_is_for_later() -> None:
    failed = Answer(200, {"status": "failed", "error": {"code": "InternalServerError"}})
    assert isinstance(failure(ACCEPTED, failed), Unavailable)


@pytest.mark.parametrize("body", [b"not json", {"status": "succeeded", "analyzeResult": {"pages": 7}}])
def test_an_answer_that_does_not_fit_is_for_later(body: Any) -> None:
    error = failure(ACCEPTED, Answer(200, body))
    assert isinstance(error, Unavailable)
    assert "cannot be used" in str(error)


def test_patience_ends() -> None:
    seconds = count()
    error = failure(
        ACCEPTED, RUNNING, RUNNING, RUNNING, patience=timedelta(seconds=5), clock=lambda: next(seconds)
    )
    assert isinstance(error, Unavailable)
    assert "no result after 0:00:05" in str(error)


def test_the_key_goes_to_no_other_host() -> None:
    with ScriptedService(Answer(200, RESULT)) as other:
        elsewhere = Answer(202, headers={"Operation-Location": f"{other.url}/results/1"})
        assert isinstance(failure(elsewhere), Unavailable)
        redirect = Answer(307, headers={"Location": f"{other.url}/elsewhere"})
        assert isinstance(failure(redirect), Refused)
    assert other.requests == []


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCR_PROVIDER", "azure")
    monkeypatch.delenv("AZURE_DOCUMENT_INTELLIGENCE_KEY", raising=False)
    monkeypatch.setenv("AZURE_DOCUMENT_INTELLIGENCE_ENDPOINT", "https://example.invalid/")
    with pytest.raises(ValueError, match="AZURE_DOCUMENT_INTELLIGENCE_KEY is not set"):
        ocr()
    monkeypatch.setenv("AZURE_DOCUMENT_INTELLIGENCE_KEY", KEY)
    assert isinstance(ocr(), AzureOcr)
    monkeypatch.setenv("OCR_PROVIDER", "other")
    with pytest.raises(ValueError, match="expected 'local' or 'azure'"):
        ocr()
