"""Analyse finances and predict cash flow: figures computed here, put into words here or by Azure OpenAI.

AI_PROVIDER chooses: `local` (the default) or `azure`. A language model is never asked to calculate, and sees
sums, never a single transaction.
"""

import os
from collections.abc import Sequence
from datetime import date
from typing import Protocol

from providers.ai.analysis import Figures, Findings
from providers.ai.forecast import Forecast, Point, daily_balances, points_csv
from providers.ai.transactions import MAX_BYTES, Record, read_transactions

__all__ = [
    "MAX_BYTES",
    "Analyst",
    "Figures",
    "Findings",
    "Forecast",
    "Point",
    "Record",
    "analyst",
    "daily_balances",
    "points_csv",
    "read_transactions",
]


class Analyst(Protocol):
    """Computes figures and finds words for them; raises Refused for input that says too little."""

    def analyze(self, records: Sequence[Record], start: date, end: date) -> tuple[Figures, Findings]:
        """Return the figures of the records from `start` to `end`, both included, and what stands out."""
        ...

    def predict(self, history: Sequence[tuple[date, float]], horizon_days: int) -> tuple[Forecast, Findings]:
        """Return the balance expected at the end of each day after the history, and what stands out."""
        ...


def analyst() -> Analyst:
    """Return the analyst that AI_PROVIDER names."""
    match os.environ.get("AI_PROVIDER", "local"):
        case "local":
            from providers.ai.local import LocalAnalyst

            return LocalAnalyst()
        case "azure":
            from providers.ai.azure import AzureAnalyst

            return AzureAnalyst.from_environment()
        case other:
            raise ValueError(f"AI_PROVIDER is {other!r}; expected 'local' or 'azure'")
