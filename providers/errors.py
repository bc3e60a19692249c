"""What a provider raises, whatever library it uses inside.

ProviderError
├── Unavailable   no answer, or a server error: the same call may succeed later
├── RateLimited   asked to come back after `retry_after`
└── Refused       the request itself is wrong; it can never succeed
"""

from datetime import timedelta


class ProviderError(Exception):
    """An outside system did not do what was asked."""


class Unavailable(ProviderError):
    """The same call may succeed later.

    `host` names the host or service that is at fault. It is empty when none is, as when credentials are missing or
    turned away: other organizations' may be right.
    """

    def __init__(self, message: str, *, host: str = "") -> None:
        super().__init__(message)
        self.host = host


class RateLimited(ProviderError):
    """The provider asked to come back after `retry_after`."""

    def __init__(self, message: str, retry_after: timedelta) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class Refused(ProviderError):
    """The request can never succeed as it is."""
