"""Kill switches, as far as this process has heard: what they match and has not begun is a dead letter."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from ratelimit.control import Said
from streams.delivery import Delivery
from streams.outcome import MESSAGE_CAP, DeadLetter, Failure, clean
from streams.selectors import selector_of

log = logging.getLogger(__name__)

PREFIX = "kill:"
"""What the names of kill switches begin with, among all that operators say."""

MOST = 20
"""How many may hold at a time: each is asked for each job."""


@dataclass(frozen=True, slots=True)
class Kill:
    """That every job which a selector matches is a dead letter instead of being run."""

    id: str
    selector: str
    since: datetime
    by: str
    reason: str
    matches: Callable[[Delivery], bool] = field(repr=False, compare=False)
    outcome: DeadLetter = field(repr=False, compare=False)

    @classmethod
    def of(cls, kill_id: str, selector: str, *, since: datetime, by: str, reason: str) -> "Kill":
        """Return one; raises `streams.selectors.InvalidSelector`, a ValueError."""
        killed = clean(f"killed: {reason}", MESSAGE_CAP)
        letter = DeadLetter(killed, Failure.named("Killed", killed))
        return cls(kill_id, selector, since, by, reason, selector_of(selector), letter)

    @property
    def name(self) -> str:
        """Return the name under which it is said."""
        return f"{PREFIX}{self.id}"

    def text(self) -> str:
        """Return it as it is said."""
        fields = {"selector": self.selector, "since": self.since.isoformat()}
        return json.dumps({**fields, "by": self.by, "reason": self.reason})

    @classmethod
    def of_said(cls, name: str, value: str) -> "Kill":
        """Return the one that was said; raises ValueError, KeyError or TypeError when it is none."""
        said = json.loads(value)
        since = datetime.fromisoformat(said["since"])
        kill_id = name.removeprefix(PREFIX)
        return cls.of(kill_id, said["selector"], since=since, by=said["by"], reason=said["reason"])


class Kills:
    """The kill switches that hold."""

    def __init__(self) -> None:
        self.known: dict[str, Kill] = {}

    def hear(self, news: Iterable[Said]) -> bool:
        """Take what was said, and return whether any of it was about kill switches."""
        heard = False
        for said in news:
            if said.name.startswith(PREFIX):
                heard = True
                self._take(said)
        return heard

    def _take(self, said: Said) -> None:
        if said.value is None:
            self.known.pop(said.name, None)
            return
        try:
            self.known[said.name] = Kill.of_said(said.name, said.value)
        except (ValueError, KeyError, TypeError) as error:
            log.error("%s is not understood, so it kills nothing here: %r", said.name, error)

    def of(self, delivery: Delivery) -> Kill | None:
        """Return the first one that matches a delivery, or None."""
        return next((one for one in self.known.values() if one.matches(delivery)), None)
