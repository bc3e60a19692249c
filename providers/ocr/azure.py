"""Read documents with Azure AI Document Intelligence, model `prebuilt-read`, REST API 2024-11-30.

Settings: AZURE_DOCUMENT_INTELLIGENCE_ENDPOINT, AZURE_DOCUMENT_INTELLIGENCE_KEY.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field
from pydantic.alias_generators import to_camel

from providers import azure
from providers.errors import RateLimited, Refused, Unavailable
from providers.ocr import MAX_BYTES, Page, Progress, Reading

if TYPE_CHECKING:
    import httpx

SERVICE = "Azure Document Intelligence"
API_VERSION = "2024-11-30"
POLL_EVERY = timedelta(seconds=1)


class _Wire(BaseModel, alias_generator=to_camel, hide_input_in_errors=True):
    pass


class _Word(_Wire):
    confidence: float = Field(ge=0, le=1)


class _Line(_Wire):
    content: str


class _Page(_Wire):
    lines: list[_Line] = []
    words: list[_Word] = []


class _Analysis(_Wire):
    pages: list[_Page]


class _Operation(_Wire):
    status: Literal["notStarted", "running", "succeeded", "failed", "canceled", "skipped"]
    analyze_result: _Analysis | None = None


class AzureOcr:
    """Sends the document, then asks for the result until it is there or `patience` is over."""

    def __init__(
        self,
        endpoint: str,
        key: str,
        *,
        timeout: timedelta = timedelta(seconds=60),
        patience: timedelta = timedelta(minutes=5),
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._key = key
        self._timeout = timeout
        self._patience = patience
        self._sleep = sleep
        self._clock = clock

    @classmethod
    def from_environment(cls) -> Self:
        return cls(
            azure.setting("AZURE_DOCUMENT_INTELLIGENCE_ENDPOINT"),
            azure.setting("AZURE_DOCUMENT_INTELLIGENCE_KEY"),
        )

    def read(self, document: bytes, *, language: str, progress: Progress) -> Reading:
        if not 0 < len(document) <= MAX_BYTES:
            raise Refused(f"the document has {len(document)} bytes; expected 1 to {MAX_BYTES}")
        with azure.client({"Ocp-Apim-Subscription-Key": self._key}, timeout=self._timeout) as client:
            operation = self._submit(client, document, language)
            progress(0.1, f"accepted by {SERVICE}")
            analysis = self._result(client, operation)
        pages = tuple(_page(page) for page in analysis.pages)
        progress(1.0, f"{len(pages)} pages")
        return Reading(pages)

    def _submit(self, client: "httpx.Client", document: bytes, language: str) -> str:
        """Return the address of the running analysis."""
        response = azure.call(
            SERVICE,
            lambda: client.post(
                f"{self._endpoint}/documentintelligence/documentModels/prebuilt-read:analyze",
                params={"api-version": API_VERSION, "locale": language},
                content=document,
                headers={"Content-Type": "application/octet-stream"},
            ),
        )
        operation = str(response.headers.get("Operation-Location", ""))
        # The key goes where this points, so it must be the service it was made for.
        if _origin(operation) != _origin(self._endpoint):
            raise Unavailable(f"{SERVICE} named no operation on its own host")
        return operation

    def _result(self, client: "httpx.Client", operation: str) -> _Analysis:
        deadline = self._clock() + self._patience.total_seconds()
        while True:
            try:
                response = azure.call(SERVICE, lambda: client.get(operation))
            except RateLimited as limited:
                # The analysis runs and is paid for: only asking was too fast.
                wait = limited.retry_after
            else:
                state = azure.parsed(SERVICE, _Operation, response.content)
                if state.status == "succeeded" and state.analyze_result is not None:
                    return state.analyze_result
                if state.status not in ("notStarted", "running"):
                    raise _failure(state.status, azure.codes_in(response.json()))
                wait = azure.retry_after(response, now=datetime.now(UTC), default=POLL_EVERY)
            if self._clock() + wait.total_seconds() > deadline:
                raise Unavailable(f"{SERVICE} had no result after {self._patience}")
            self._sleep(wait.total_seconds())


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def _failure(status: str, codes: str) -> Refused | Unavailable:
    said = f"{SERVICE}: the analysis ended as {status} {codes}".rstrip()
    if codes.startswith(("Internal", "ServiceUnavailable")):
        return Unavailable(said, host=SERVICE)
    return Refused(said)


def _page(page: _Page) -> Page:
    confidence = fmean([word.confidence for word in page.words] or [0.0])
    return Page("\n".join(line.content for line in page.lines), "azure", round(confidence, 4))
