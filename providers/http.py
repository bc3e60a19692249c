"""What an answer over HTTP means, the same for every provider that speaks it."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from providers.errors import ProviderError, RateLimited, Refused, Unavailable

UNNAMED_WAIT = timedelta(seconds=30)
"""How long to stay away after a 429 that does not say."""
LONGEST_WAIT = timedelta(hours=6)

_MAY_PASS = {401, 403, 408, 425}
"""Also what says that our credentials are wrong: they can be put right, and the job with them."""


def status_error(
    who: str, status: int, headers: Mapping[str, str], now: datetime, *, detail: str = ""
) -> ProviderError | None:
    """Return the error that an answer amounts to, or None for 2xx.

    429 (and 503 with Retry-After) is RateLimited; 401, 403, 408, 425 and 5xx are Unavailable; all else,
    redirects among them, is Refused. `who` is the host or service that answered, and `detail` must hold nothing
    secret.
    """
    if 200 <= status < 300:
        return None
    message = f"{who} answered {status}{f': {detail}' if detail else ''}"
    wait = retry_after(headers.get("retry-after"), now)
    if status == 429 or (status == 503 and wait is not None):
        return RateLimited(message, UNNAMED_WAIT if wait is None else wait)
    if status >= 500 or status in _MAY_PASS:
        return Unavailable(message, host="" if status in (401, 403) else who)
    return Refused(message)


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """Return the wait that a Retry-After header asks for (RFC 9110 §10.2.3), or None when it is not one.

    Never negative and at most LONGEST_WAIT, so a wrong clock or an absurd number cannot park a job for good.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # Longer numbers than any wait would overflow a timedelta.
        return min(timedelta(seconds=int(text[:9])), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(until - now, timedelta(0)), LONGEST_WAIT)


def secret(name: str) -> str:
    """Return a credential from the environment, or raise Unavailable naming the variable that is missing.

    The operator's mistake is not the job's: it can succeed once the variable is set.
    """
    value = os.environ.get(name)
    if not value:
        raise Unavailable(f"{name} is not set")
    return value
