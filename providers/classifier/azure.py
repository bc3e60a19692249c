"""Classify documents with a model deployed on Azure OpenAI."""

from datetime import date
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from providers.ai.chat import AzureChat
from providers.classifier import Category, Classification, Fields

LONGEST_TEXT = 12_000
"""Characters that are sent: what a document is stands on its first pages, and every one costs money."""

INSTRUCTION = (
    "You classify business documents for an accounting firm and extract their fields. Use null for a field that "
    "the document does not state; never guess. Dates are ISO 8601, currencies ISO 4217, total is a number."
)


class _Answer(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    category: Category
    confidence: float = Field(ge=0, le=1)
    invoice_number: str | None = Field(default=None, max_length=100)
    issued: date | None = None
    total: float | None = Field(default=None, allow_inf_nan=False)
    currency: str | None = Field(default=None, pattern="^[A-Z]{3}$")
    vendor: str | None = Field(default=None, max_length=200)


class AzureClassifier:
    """Sends the first pages of the text and takes the model's word for the category."""

    def __init__(self, chat: AzureChat) -> None:
        self._chat = chat

    @classmethod
    def from_environment(cls) -> Self:
        return cls(AzureChat.from_environment())

    def classify(self, text: str) -> Classification:
        answer = self._chat.ask(INSTRUCTION, text[:LONGEST_TEXT], _Answer)
        fields = Fields(**answer.model_dump(exclude={"category", "confidence"}))
        return Classification(answer.category, answer.confidence, fields)
