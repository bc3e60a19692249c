"""Say what kind of document a text is and extract what that kind has: offline rules, or Azure OpenAI.

AI_PROVIDER chooses: `local` (the default) or `azure`.
"""

import os
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Protocol


class Category(StrEnum):
    """The kinds of documents that are told apart."""

    INVOICE = "invoice"
    RECEIPT = "receipt"
    BANK_STATEMENT = "bank_statement"
    TAX_FORM = "tax_form"
    CONTRACT = "contract"
    PAYSLIP = "payslip"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Fields:
    """What was extracted; None where nothing was found. `currency` is ISO 4217."""

    invoice_number: str | None = None
    issued: date | None = None
    total: float | None = None
    currency: str | None = None
    vendor: str | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """A document's category, how sure that is (0 to 1), and its fields."""

    category: Category
    confidence: float
    fields: Fields = field(default_factory=Fields)


class Classifier(Protocol):
    """Classifies texts; raises Unavailable or RateLimited for later, Refused for never."""

    def classify(self, text: str) -> Classification:
        """Return the category and fields of a document's text."""
        ...


def classifier() -> Classifier:
    """Return the classifier that AI_PROVIDER names."""
    match os.environ.get("AI_PROVIDER", "local"):
        case "local":
            from providers.classifier.local import LocalClassifier

            return LocalClassifier()
        case "azure":
            from providers.classifier.azure import AzureClassifier

            return AzureClassifier.from_environment()
        case other:
            raise ValueError(f"AI_PROVIDER is {other!r}; expected 'local' or 'azure'")
