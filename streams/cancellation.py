"""Which jobs are cancelled, as far as this worker has heard."""

import heapq
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from ratelimit.control import Said
from streams.delivery import Delivery
from streams.hearing import keep
from streams.outcome import Cancelled

PREFIX = "cancel:"
"""What the names of cancels begin with, among all that operators say."""


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
        self._ends: list[tuple[datetime, str]] = []

    def hear(self, news: Iterable[Said], now: datetime) -> bool:
        """Take what was said, forget what has ended, and return whether there was a cancel among it."""
        heard = False
        for said in news:
            if said.name.startswith(PREFIX):
                self._take(said)
                heard = True
        while self._ends and self._ends[0][0] <= now:
            until, name = heapq.heappop(self._ends)
            # One that was said again has a later end.
            if name in self.known and self.known[name].until == until:
                del self.known[name]
        return heard

    def _take(self, said: Said) -> None:
        def of_said(one: Said) -> Cancel:
            return Cancel.of_text(one.value or "", one.until)

        cancel = keep(self.known, said, of_said, "that job is not cancelled here")
        if cancel is not None and cancel.until is not None:
            heapq.heappush(self._ends, (cancel.until, said.name))

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
