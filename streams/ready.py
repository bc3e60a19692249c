"""What a queue has admitted and waits for a slot: how much of that is there to be, and which one is next?

Pure and synchronous: instants are arguments.
Asking for many at once costs little for each, and what is admitted is committed to: so some work is kept ready, but
whoever has nothing else under way goes before it.
"""

from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.runs import Running

MOST = 200
"""How many jobs are a moment's work at most, however quick they are."""

LASTS = timedelta(milliseconds=50)
"""A moment: for so long all slots have work in what is admitted ahead."""

OVERTAKEN_FOR = 2 * LASTS
"""What has waited for so long is overtaken no more."""


class Ready:
    """Admitted deliveries, those first whose organization had nothing else under way."""

    def __init__(self) -> None:
        self._leading: deque[tuple[float, Running]] = deque()
        self._others: deque[tuple[float, Running]] = deque()
        self._ended = self._ended_before = 0

    def __len__(self) -> int:
        return len(self._leading) + len(self._others)

    def ended(self) -> None:
        """Note that a run has ended."""
        self._ended += 1

    def wanted(self, free: int, seconds_per_job: float) -> int:
        """Return how many to admit: for the free slots, and ahead of them as many as lately ended twice over.

        But no more than a moment's work, for what is ready may run nowhere else.
        """
        ahead = min(2 * self._ended, _moment(seconds_per_job))
        waiting = len(self)
        if waiting > ahead // 2:
            return 0
        self._ended, self._ended_before = 0, self._ended
        return free - waiting + ahead

    def room(self, seconds_per_job: float) -> int:
        """Return how many may be admitted that lead, though there is enough: as many again, while runs end."""
        most = min(4 * max(self._ended, self._ended_before), 2 * _moment(seconds_per_job))
        return max(most - len(self), 0)

    def put(self, running: "Running", at_seconds: float) -> None:
        """Add what was admitted, at an instant by a monotonic clock."""
        (self._leading if running.delivery.leads else self._others).append((at_seconds, running))

    def pop(self, at_seconds: float) -> "Running":
        """Take the next one: the first of those that lead, unless one that was there before it waits for too long."""
        leading, others = self._leading, self._others
        if not leading:
            return others.popleft()[1]
        earlier = others and others[0][0] < leading[0][0]
        overdue = earlier and at_seconds - others[0][0] > OVERTAKEN_FOR.total_seconds()
        return (others if overdue else leading).popleft()[1]


def _moment(seconds_per_job: float) -> int:
    """Return how many jobs are a moment's work."""
    return min(MOST, int(LASTS.total_seconds() / seconds_per_job))
