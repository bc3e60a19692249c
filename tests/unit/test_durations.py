"""Durations as people type them."""

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1.5h", 5400), ("7d", 604_800), ("12", 12), (" 5 m ", 300), ("0s", 0)],
)
def test_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 minutes", "1e3s", "5s5", "1.s", "٣.s", "nan"])
def test_refuses_and_says_what_came(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 500ms") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["999999999999d", "9" * 400, "9" * 400 + "ms"])
def test_refuses_what_no_duration_can_hold(text: str) -> None:
    with pytest.raises(ValueError, match="less than a billion days"):
        parse_duration(text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)
