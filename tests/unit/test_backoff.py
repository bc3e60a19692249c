"""How long a failed job waits."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.backoff import Backoff
from streams.errors import ConfigError

seconds = st.floats(0.001, 1e6).map(lambda number: timedelta(seconds=number))
jitter = st.floats(0, 1, exclude_max=True)


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    minimum = draw(seconds)
    return Backoff(
        first=draw(seconds),
        factor=draw(st.floats(1, 1000)),
        minimum=minimum,
        cap=minimum + draw(seconds),
    )


@given(backoffs(), st.integers(1, 10_000), jitter)
def test_the_wait_lies_between_minimum_and_cap_on_every_attempt(
    backoff: Backoff, attempt: int, random: float
) -> None:
    delay = backoff.delay(attempt, random)
    assert delay <= backoff.cap
    assert delay >= min(backoff.minimum, backoff.first)


@given(backoffs(), st.integers(1, 500))
def test_the_longest_wait_never_shrinks_from_attempt_to_attempt(backoff: Backoff, attempt: int) -> None:
    assert backoff.delay(attempt, 0.999) <= backoff.delay(attempt + 1, 0.999)


@given(st.integers(1, 1000))
def test_jitter_is_full(attempt: int) -> None:
    backoff = Backoff()
    ceiling = min(backoff.cap, backoff.first * 2 ** min(attempt - 1, 20))
    assert backoff.delay(attempt, 0.0) == backoff.minimum
    middle = backoff.minimum + (ceiling - backoff.minimum) / 2
    assert abs(backoff.delay(attempt, 0.5) - middle) <= timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("attempt", "longest"), [(1, 2), (2, 4), (3, 8), (11, 2048), (12, 3600), (1000, 3600)]
)
def test_it_doubles_up_to_an_hour(attempt: int, longest: int) -> None:
    assert Backoff().delay(attempt, 1 - 1e-12) == timedelta(seconds=longest)


def test_a_steep_backoff_ends_at_its_cap_instead_of_overflowing() -> None:
    assert Backoff(factor=1000.0).delay(1000, 0.5) < timedelta(hours=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 0.5},
        {"factor": float("nan")},
        {"factor": 1e200},
        {"first": timedelta(0)},
        {"minimum": timedelta(0)},
        {"minimum": timedelta(hours=2)},
        {"cap": timedelta(seconds=-1)},
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="backoff"):
        Backoff(**wrong)  # type: ignore[arg-type]
