"""Which jobs are cancelled, as far as this worker has heard, and what becomes of those that have not begun."""

import asyncio
import heapq
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from ratelimit import Admission, AdmissionUnavailable, Answer, Candidate, Duplicate, Run
from ratelimit.control import Said
from streams.delivery import Delivery
from streams.outcome import Attempt, Cancelled
from streams.queues import Queue
from streams.settle import Settlement

log = logging.getLogger(__name__)

PREFIX = "cancel:"
"""What the names of cancels begin with, among all that operators say."""

BATCH = 200

ASK_AGAIN = timedelta(seconds=1)
"""How soon a cancelled delivery whose job runs elsewhere asks again: that worker has heard of the cancel, too."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """That a job is cancelled: each delivery of it, up to those of a replay that is later than the cancel."""

    id: str
    """UUIDv7, as the ids of replays are: of the two, the later one counts."""
    by: str
    told: str | None = None
    """The replay, '' for none, whose `cancelled` event was written with the cancel; None when none was."""
    until: datetime | None = None
    """When it is forgotten; None for never."""

    def covers(self, replay_id: str | None) -> bool:
        """Return whether deliveries of a replay, or of none, are cancelled."""
        return (replay_id or "") < self.id

    def outcome(self, delivery: Delivery) -> Cancelled:
        """Return the outcome of a delivery that has not begun."""
        return Cancelled(self.by, told=self.told == (delivery.replay_id or ""))

    def text(self) -> str:
        """Return it as it is said."""
        return json.dumps({"id": self.id, "by": self.by, "told": self.told})

    @classmethod
    def of_text(cls, text: str, until: datetime | None = None) -> Self:
        """Return what was said; raises ValueError, KeyError or TypeError when it is no cancel."""
        said = json.loads(text)
        # Jobs are cancelled by the thousand for one reason.
        return cls(said["id"], sys.intern(said["by"]), said["told"], until)


def name_of(organization_id: str, job_id: str) -> str:
    """Return the name under which the cancel of a job is said."""
    return f"{PREFIX}{organization_id}:{job_id}"


class Cancellations:
    """The cancels that hold, by what this worker has heard; asked for each delivery, and so a dict."""

    def __init__(self) -> None:
        self.known: dict[str, Cancel] = {}
        self.heard = 0
        """How often something was heard."""
        self._ends: list[tuple[datetime, str]] = []

    def hear(self, news: Iterable[Said], now: datetime) -> bool:
        """Take what was said, forget what has ended, and return whether there was a cancel among it."""
        before = self.heard
        for said in news:
            if said.name.startswith(PREFIX):
                self._take(said)
                self.heard += 1
        while self._ends and self._ends[0][0] <= now:
            until, name = heapq.heappop(self._ends)
            # One that was said again has a later end.
            if name in self.known and self.known[name].until == until:
                del self.known[name]
        return self.heard > before

    def _take(self, said: Said) -> None:
        if said.value is None:
            self.known.pop(said.name, None)
            return
        try:
            self.known[said.name] = Cancel.of_text(said.value, said.until)
        except (ValueError, KeyError, TypeError) as error:
            log.error("%s is not understood, so that job is not cancelled here: %r", said.name, error)
        else:
            if said.until is not None:
                heapq.heappush(self._ends, (said.until, said.name))

    def of(self, delivery: Delivery) -> Cancel | None:
        """Return the cancel that a delivery falls under, or None."""
        cancel = self.known.get(f"{PREFIX}{delivery.organization_id}:{delivery.job_id}")
        return cancel if cancel is not None and cancel.covers(delivery.replay_id) else None

    def cover(self, headers: Mapping[str, bytes]) -> bool:
        """Return whether the job of a record is cancelled, by its headers alone; safe to call from any thread."""
        if not self.known:
            return False
        organization_id, job_id, replay_id = (
            headers.get(name, b"").decode("utf-8", "replace")
            for name in ("organization-id", "ce_id", "replay-id")
        )
        cancel = self.known.get(name_of(organization_id, job_id))
        return cancel is not None and cancel.covers(replay_id)


class Unbegun:
    """Deliveries of one queue that are cancelled and have not begun.

    Each is leased before it is settled, so that nobody runs it meanwhile and one worker tells its end; but for
    no limit: what does not run waits for none and takes nothing of it.
    """

    def __init__(self, queue: Queue, admission: Admission, settlement: Settlement, *, closed: bool) -> None:
        self._queue = queue
        self._closed = closed
        self._admission = admission
        self._settlement = settlement
        self._waiting: dict[Delivery, Cancelled] = {}
        self._wake = asyncio.Event()

    def add(self, delivery: Delivery, outcome: Cancelled) -> None:
        """Take a delivery that holds no lease."""
        self._waiting[delivery] = outcome
        self._wake.set()

    def all(self) -> list[Delivery]:
        """Return what was taken and is not settled yet."""
        return list(self._waiting)

    def leave(self) -> None:
        """Give up those whose partition is gone."""
        self._waiting = {one: outcome for one, outcome in self._waiting.items() if not one.offsets.gone}

    async def run(self) -> None:
        """Settle what is taken until cancelled."""
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

    async def _settle(self, batch: dict[Delivery, Cancelled]) -> None:
        candidates = [Candidate(one.identity, one.fence()) for one in batch]
        try:
            answers: list[Answer] = await self._admission.admit(candidates)
        except AdmissionUnavailable as error:
            if self._closed:
                log.warning("%d cancelled jobs of %s wait for Redis: %s", len(batch), self._queue.name, error)
                self._waiting |= batch
                return
            answers = [Run("", 0)] * len(batch)
        for (delivery, outcome), answer in zip(batch.items(), answers, strict=True):
            match answer:
                case Run(token):
                    delivery.token = token
                    self._settlement.finish(delivery, outcome, Attempt(), None)
                case Duplicate():
                    self._settlement.drop(delivery)
                case _ if not delivery.offsets.gone:
                    self._waiting[delivery] = outcome
