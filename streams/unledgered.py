"""What ran on this worker, for when the ledger is away: the little that it can know by itself."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import timedelta

from ratelimit import Answer, Duplicate, Leased, Run
from streams.delivery import Delivery

REMEMBERED = 10_000


class Unledgered:
    """Answers in place of the ledger, for queues that go on without it.

    It sees one worker's deliveries only, and forgets all but the latest: two deliveries of a job that two workers
    read both run. What was left as a copy of a job that had begun waits for the ledger all the same.
    """

    def __init__(self, *, closed: bool = False) -> None:
        self._closed = closed
        """Whether the queue waits for the ledger, so that nothing is asked here."""
        self._fences = OrderedDict[str, str]()
        """Of each job that ran without a lease: the greatest fence."""
        self._ended = OrderedDict[str, str]()
        """The same of those that ended with one, which the ledger knows while it is there."""

    def admit(
        self, batch: Sequence[Delivery], running: Collection[str], ask_again: timedelta
    ) -> list[Answer]:
        """Answer whether each may run, without a lease; `running` are the identities of those that may already."""
        here = set(running)
        return [self._answer(one, here, ask_again) for one in batch]

    def _answer(self, delivery: Delivery, here: set[str], ask_again: timedelta) -> Answer:
        name = delivery.identity
        if name in here:
            return Leased(ask_again)
        if self.knows(delivery) or delivery.fence() <= self._ended.get(name, ""):
            return Duplicate()
        if delivery.is_copy:
            # It began somewhere else, and has most likely ended there.
            return Leased(ask_again)
        here.add(name)
        return Run("", 0)

    def knows(self, delivery: Delivery) -> bool:
        """Return whether a delivery ran here without a lease, or runs still: the ledger need not know of it."""
        return bool(self._fences) and delivery.fence() <= self._fences.get(delivery.identity, "")

    def ran(self, delivery: Delivery) -> None:
        """Remember a delivery that runs without a lease; one that may and does not leaves no trace."""
        _remember(self._fences, delivery)

    def ended(self, delivery: Delivery) -> None:
        """Remember a delivery that ended with a lease: its like may come when the ledger is away."""
        if not self._closed:
            _remember(self._ended, delivery)


def _remember(fences: OrderedDict[str, str], delivery: Delivery) -> None:
    if len(fences) >= REMEMBERED:
        fences.popitem(last=False)  # a dict's first key is found by passing all that were deleted before it
    fences[delivery.identity] = delivery.fence()
