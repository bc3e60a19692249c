"""Which organizations used the slots of a queue lately: seconds, in sums that fade within about a minute."""

import heapq
import math
from operator import itemgetter

MINUTE_S = 60.0
"""How fast it fades: what ended a minute ago counts for a third of what ends now."""

LEAST_S = 1e-5
KNOWN_MAX = 10_000
"""Most organizations that are remembered from one look to the next."""


class Usage:
    """Seconds of slots by organization; instants are arguments."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._faded_at_s: float | None = None

    def add(self, organization: str, seconds: float) -> None:
        """Count a run that ends now."""
        if seconds > 1.0:
            seconds = lately(seconds)
        self._seconds[organization] = self._seconds.get(organization, 0.0) + seconds

    def fade(self, now_s: float) -> None:
        """Let what was counted fade; called once per second, `now_s` is monotonic."""
        if self._seconds and self._faded_at_s is not None:
            factor = math.exp((self._faded_at_s - now_s) / MINUTE_S)
            left = {name: used * factor for name, used in self._seconds.items() if used > LEAST_S}
            if len(left) > KNOWN_MAX:
                left = dict(heapq.nlargest(KNOWN_MAX, left.items(), key=itemgetter(1)))
            self._seconds = left
        self._faded_at_s = now_s

    def all(self) -> dict[str, float]:
        """Return the seconds of every organization that is remembered."""
        return dict(self._seconds)


def lately(seconds: float) -> float:
    """Return how much of a run that went on until now counts."""
    return MINUTE_S * -math.expm1(-seconds / MINUTE_S)
