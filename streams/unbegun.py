"""What operators keep from beginning, on one queue of a worker: it ends, or it waits."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from ratelimit import Admission, AdmissionUnavailable, Answer, Candidate, Duplicate, Leased, Run
from streams.delivery import Delivery
from streams.operators import Operators
from streams.outcome import Attempt, Cancelled, DeadLetter
from streams.queues import SHORTEST_DELAY, Queue
from streams.settle import Settlement

log = logging.getLogger(__name__)

BATCH = 200

ASK_AGAIN = timedelta(seconds=1)
"""How soon a cancelled delivery whose job runs elsewhere asks again: that worker has heard of the cancel, too."""


class Unbegun:
    """Deliveries of one queue that have not begun and may not: the cancelled, the killed and the paused.

    What ends is leased before it is settled, so that nobody runs it meanwhile and one worker tells its end; but for
    no limit: what does not run waits for none and takes nothing of it. What is paused steps aside to a retry topic.
    """

    def __init__(
        self,
        queue: Queue,
        operators: Operators,
        admission: Admission,
        settlement: Settlement,
        *,
        closed: bool,
        clock: Callable[[], datetime],
    ) -> None:
        self._queue = queue
        self._operators = operators
        self._closed = closed
        self._admission = admission
        self._settlement = settlement
        self._clock = clock
        self._waiting: dict[Delivery, Cancelled | DeadLetter] = {}
        self._wake = asyncio.Event()

    @property
    def queue_is_paused(self) -> bool:
        """Return whether nothing of the queue may begin: it waits where it is, in the window and in its topic."""
        return self._queue.name in self._operators.pauses.queues

    def withhold(self, delivery: Delivery, now: datetime) -> bool:
        """Return whether a delivery without a lease may not begin, and see to what becomes of it if so."""
        return self.end(delivery) or self.put_aside(delivery, now)

    def end(self, delivery: Delivery) -> bool:
        """Return whether a delivery without a lease ends here, and see to its end if so."""
        outcome = self._operators.end_of(delivery)
        if outcome is None:
            return False
        self._waiting[delivery] = outcome
        self._wake.set()
        return True

    def put_aside(self, delivery: Delivery, now: datetime) -> bool:
        """Return whether a delivery without a lease is paused, and let it come again later if so."""
        pause = self._operators.pauses.aside(delivery)
        if pause is None:
            return False
        self._settlement.postpone(delivery, now, now + pause.away(now), pause.why)
        return True

    def all(self) -> list[Delivery]:
        """Return what ends and is not settled yet."""
        return list(self._waiting)

    def leave(self) -> None:
        """Give up those whose partition is gone."""
        self._waiting = {one: outcome for one, outcome in self._waiting.items() if not one.offsets.gone}

    async def run(self) -> None:
        """Settle what ends until cancelled."""
        while True:
            await self._next()
            waiting, self._waiting = list(self._waiting.items()), {}
            for start in range(0, len(waiting), BATCH):
                await self._settle(dict(waiting[start : start + BATCH]))

    async def _next(self) -> None:
        try:
            async with asyncio.timeout(ASK_AGAIN.total_seconds() if self._waiting else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _settle(self, batch: dict[Delivery, Cancelled | DeadLetter]) -> None:
        candidates = [Candidate(one.identity, one.fence()) for one in batch]
        try:
            answers: list[Answer] = await self._admission.admit(candidates)
        except AdmissionUnavailable as error:
            if self._closed:
                log.warning("%d jobs of %s that end wait for Redis: %s", len(batch), self._queue.name, error)
                self._waiting |= batch
                return
            answers = [Run("", 0)] * len(batch)
        now = self._clock()
        for (delivery, outcome), answer in zip(batch.items(), answers, strict=True):
            match answer:
                case Run(token):
                    delivery.token = token
                    self._settlement.finish(delivery, outcome, Attempt(), None)
                case Duplicate():
                    self._settlement.drop(delivery)
                case _ if delivery.offsets.gone:
                    pass
                case Leased(retry_after) if isinstance(outcome, DeadLetter):
                    # Nobody stops its run, which may last: meanwhile nothing here may hold the partition back.
                    due = now + max(retry_after, SHORTEST_DELAY)
                    self._settlement.postpone(delivery, now, due, "its job runs elsewhere")
                case _:
                    self._waiting[delivery] = outcome
