"""Which jobs are paused, as far as this process has heard.

A pause of a whole queue stops the queue where it is: nothing of it is read or admitted. Any other one concerns
some of a queue's jobs, and those step aside, told to nobody, for as long as the pause has lasted so far: so a
long one costs little. docs/how-to/pause-jobs.md has the bounds.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ratelimit.control import Said
from streams.delivery import Delivery
from streams.hearing import keep
from streams.jobs import Handler
from streams.limits import KNOWN_MAX
from streams.rules import Scope

PREFIX = "pause:"
"""What the names of pauses begin with, among all that operators say."""

AWAY = (timedelta(minutes=2), timedelta(seconds=30), timedelta(seconds=5))
"""How long what is paused is away: one hop through a retry topic each, the longest that the pause has lasted for."""


@dataclass(frozen=True, slots=True)
class Pause:
    """That no job of a scope begins."""

    scope: Scope
    since: datetime
    by: str
    reason: str = ""
    until: datetime | None = None
    """When it ends by itself; None for never."""

    @property
    def name(self) -> str:
        """Return the name under which it is said."""
        return f"{PREFIX}{self.scope}"

    @property
    def why(self) -> str:
        """Return why a job waits that it covers."""
        return f"paused: {self.scope}" + (f", {self.reason}" if self.reason else "")

    def text(self) -> str:
        """Return it as it is said."""
        return json.dumps({"since": self.since.isoformat(), "by": self.by, "reason": self.reason})

    @classmethod
    def of_said(cls, said: Said) -> "Pause":
        """Return the pause that was said; raises ValueError, KeyError or TypeError when it is none."""
        fields = json.loads(said.value or "")
        scope = Scope.of_text(said.name.removeprefix(PREFIX))
        since = datetime.fromisoformat(fields["since"])
        return cls(scope, since, fields["by"], fields["reason"], said.until)

    def covers(self, handler: Handler, organization: str) -> bool:
        """Return whether jobs of a handler and an organization are paused."""
        whole = Scope(handler.queue.name, handler.job_type, handler.provider, organization)
        return all(stated in (None, value) for stated, value in zip(self.scope, whole, strict=True))

    @property
    def whole_queue(self) -> str | None:
        """Return the queue that it stops as a whole, or None when it concerns some jobs only."""
        return self.scope.queue if self.scope == Scope(self.scope.queue) else None

    def away(self, now: datetime) -> timedelta:
        """Return for how long what it covers steps aside now."""
        return next((one for one in AWAY if one <= now - self.since), AWAY[-1])


class Pauses:
    """The pauses that hold; a delivery is paused while any of them covers it."""

    def __init__(self) -> None:
        self.known: dict[str, Pause] = {}
        self.queues: set[str] = set()
        """The queues that are stopped as a whole."""
        self._aside: dict[tuple[str, str], Pause | None] = {}

    def hear(self, news: Iterable[Said], now: datetime) -> bool:
        """Take what was said, forget what has ended, and return whether other jobs are paused than before."""
        before = dict(self.known)
        for said in news:
            if said.name.startswith(PREFIX):
                keep(self.known, said, Pause.of_said, "nothing is paused by it here")
        self.known = {name: one for name, one in self.known.items() if one.until is None or one.until > now}
        if self.known == before:
            return False
        self.queues = {queue for one in self.known.values() if (queue := one.whole_queue)}
        self._aside.clear()
        return True

    def of(self, handler: Handler, organization: str) -> list[Pause]:
        """Return every pause that covers jobs of a handler and an organization, the longest first."""
        covering = [one for one in self.known.values() if one.covers(handler, organization)]
        return sorted(covering, key=lambda one: one.since)

    def aside(self, delivery: Delivery) -> Pause | None:
        """Return the pause for which a delivery steps aside, or None; one look for each but the first of its kind."""
        if not self.known:
            return None
        key = delivery.handler.job_type, delivery.organization_id
        if key not in self._aside:
            if len(self._aside) >= KNOWN_MAX:
                self._aside.clear()
            found = [one for one in self.of(delivery.handler, key[1]) if one.whole_queue is None]
            self._aside[key] = found[0] if found else None
        return self._aside[key]
