"""Durations as people type them."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta:
    """Return the duration that `30s`, `1.5h`, `500ms`, `7d` or a bare number of seconds names.

    Raises ValueError saying what was expected and what came.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if match is None:
        raise ValueError(f"expected a duration such as 500ms, 30s, 5m, 2h or 7d, got {text!r}")
    try:
        return timedelta(**{_UNITS[match[2] or "s"]: float(match[1])})
    except OverflowError:
        raise ValueError(f"expected a duration of less than a billion days, got {text[:40]!r}") from None


def _from_text(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(_from_text)]
"""A timedelta that pydantic also reads from the texts of `parse_duration`."""
