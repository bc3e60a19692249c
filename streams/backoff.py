"""How long a failed job waits before its next attempt."""

from dataclasses import dataclass
from datetime import timedelta

from streams.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter and a cap.

    After attempt n the wait is uniform in [minimum, min(cap, first · factor^(n-1))]. Full jitter: Marc Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The minimum keeps a retry out of the outage
    that caused it.
    """

    first: timedelta = timedelta(seconds=2)
    factor: float = 2.0
    cap: timedelta = timedelta(hours=1)
    minimum: timedelta = timedelta(seconds=1)

    def __post_init__(self) -> None:
        if not timedelta(0) < self.minimum <= self.cap or self.first <= timedelta(0):
            raise ConfigError(f"a backoff needs 0 < minimum <= cap and 0 < first, got {self}")
        if not 1 <= self.factor <= 1000:
            raise ConfigError(f"the factor of a backoff must be 1 to 1000, got {self.factor}")

    def delay(self, attempt: int, random: float) -> timedelta:
        """Return the wait after a failed attempt (counted from 1), for a random number in [0, 1)."""
        # The exponent is bounded, and the cap compared as numbers: neither a float nor a timedelta may overflow.
        growth: float = self.factor ** min(attempt - 1, 64)
        ceiling = self.first * growth if growth < self.cap / self.first else self.cap
        floor = min(self.minimum, ceiling)
        return floor + (ceiling - floor) * random
