"""What an HTTP answer means."""

from datetime import UTC, datetime, timedelta

import pytest

from providers.errors import RateLimited, Refused, Unavailable
from providers.http import LONGEST_WAIT, UNNAMED_WAIT, retry_after, status_error

NOW = datetime(2026, 4, 15, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, None), (202, None), (204, None)]
    + [(status, Refused) for status in (301, 302, 307, 400, 404, 409, 410, 413, 422)]
    + [(status, Unavailable) for status in (401, 403, 408, 425, 500, 502, 503, 504, 599)]
    + [(429, RateLimited)],
)
def test_statuses(status: int, kind: type[Exception] | None) -> None:
    error = status_error("Acme", status, {}, NOW)
    assert (type(error) if error else None) is kind
    assert error is None or str(status) in str(error)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        ("120", timedelta(minutes=2)),
        (" 7 ", timedelta(seconds=7)),
        ("Wed, 15 Apr 2026 12:01:30 GMT", timedelta(seconds=90)),
        ("Wed, 15 Apr 2026 11:00:00 GMT", timedelta(0)),
        ("Wed, 15 Apr 2026 14:01:30 +0200", timedelta(seconds=90)),
        ("999999999999999999999999", LONGEST_WAIT),
        ("Wed, 15 Apr 2099 12:00:00 GMT", LONGEST_WAIT),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, wait: timedelta | None) -> None:
    assert retry_after(value, NOW) == wait


def test_a_rate_limit_carries_its_wait() -> None:
    named = status_error("Acme", 429, {"retry-after": "9"}, NOW)
    unnamed = status_error("Acme", 429, {"retry-after": "later"}, NOW)
    busy = status_error("Acme", 503, {"retry-after": "9"}, NOW)
    assert isinstance(named, RateLimited)
    assert isinstance(unnamed, RateLimited)
    assert isinstance(busy, RateLimited)
    assert (named.retry_after, unnamed.retry_after) == (timedelta(seconds=9), UNNAMED_WAIT)
