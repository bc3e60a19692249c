"""Read the text of a document: offline with the machine's own processor, or in the cloud.

OCR_PROVIDER chooses: `local` (the default) or `azure`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

MAX_BYTES = 50 * 1024 * 1024

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Page:
    """The text of one page; `method` says how it was read, `confidence` is 0 to 1."""

    text: str
    method: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The text of a document, page by page."""

    pages: tuple[Page, ...]

    @property
    def text(self) -> str:
        """Return the text of all pages, separated by form feeds."""
        return "\f".join(page.text for page in self.pages)

    @property
    def method(self) -> str:
        """Return the methods used, such as "text", "ocr" or "text+ocr"."""
        return "+".join(sorted({page.method for page in self.pages}, reverse=True))

    @property
    def confidence(self) -> float:
        """Return the mean over the pages that have text, 0 when none has."""
        return round(fmean([page.confidence for page in self.pages if page.text] or [0.0]), 4)


class Ocr(Protocol):
    """Reads a document; raises Refused for one that can never be read, Unavailable or RateLimited for later."""

    def read(self, document: bytes, *, language: str, progress: Progress) -> Reading:
        """Return the text of a PDF, PNG, JPEG or TIFF; `language` is a BCP 47 tag."""
        ...


def ocr() -> Ocr:
    """Return the provider that OCR_PROVIDER names."""
    match os.environ.get("OCR_PROVIDER", "local"):
        case "local":
            from providers.ocr.local import LocalOcr

            return LocalOcr()
        case "azure":
            from providers.ocr.azure import AzureOcr

            return AzureOcr.from_environment()
        case other:
            raise ValueError(f"OCR_PROVIDER is {other!r}; expected 'local' or 'azure'")
