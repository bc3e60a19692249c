"""Put figures into words with a model deployed on Azure OpenAI."""

import json
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from providers.ai.analysis import Figures, Findings, figures_of
from providers.ai.chat import AzureChat
from providers.ai.forecast import Forecast, forecast_of
from providers.ai.transactions import Record

INSTRUCTION = (
    "You advise a small business on its finances. From the figures, state up to six findings that its owner should "
    "act on, the most important first, one plain sentence each. Use only numbers that are in the figures."
)


class _Answer(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    findings: list[Annotated[str, Field(min_length=1, max_length=500)]] = Field(min_length=1, max_length=10)


class AzureAnalyst:
    """Computes the figures here and sends them, never the transactions, to find words for them."""

    def __init__(self, chat: AzureChat) -> None:
        self._chat = chat

    @classmethod
    def from_environment(cls) -> Self:
        return cls(AzureChat.from_environment())

    def analyze(self, records: Sequence[Record], start: date, end: date) -> tuple[Figures, Findings]:
        figures = figures_of(records, start, end)
        return figures, self._findings(figures.to_dict())

    def predict(self, history: Sequence[tuple[date, float]], horizon_days: int) -> tuple[Forecast, Findings]:
        forecast = forecast_of(history, horizon_days)
        weeks = [
            {"day": point.day, "balance": point.balance, "low": point.low, "high": point.high}
            for point in (*forecast.points[6:-1:7], forecast.points[-1])
        ]
        summary = {
            "daily_flow": forecast.daily_level,
            "daily_flow_trend": forecast.daily_trend,
            "recurring_by_day_of_month": forecast.monthly,
            "lowest_balance": forecast.lowest.balance,
            "lowest_day": forecast.lowest.day,
            "may_be_below_zero_from": forecast.shortfall_day,
            "weekly_balances": weeks,
        }
        return forecast, self._findings(summary)

    def _findings(self, figures: dict[str, Any]) -> Findings:
        answer = self._chat.ask(INSTRUCTION, json.dumps(figures, default=str), _Answer)
        return Findings(answer.findings, "azure")
