"""How long a failed job waits before its next attempt."""

from dataclasses import dataclass
from datetime import timedelta


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

    def delay(self, attempt: int, random: float) -> timedelta:
        """Return the wait after a failed attempt (counted from 1), for a random number in [0, 1)."""
        # The exponent is bounded: factor**n overflows a float long before anyone retries that often.
        ceiling = min(self.cap, self.first * self.factor ** min(attempt - 1, 32))
        floor = min(self.minimum, ceiling)
        return floor + (ceiling - floor) * random
