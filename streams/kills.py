"""Kill switches, as far as this process has heard: what they match and has not begun is a dead letter."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from ratelimit.control import Said
from streams.delivery import Delivery
from streams.hearing import keep
from streams.outcome import MESSAGE_CAP, DeadLetter, Failure, clean
from streams.selectors import selector_of

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
    def of_said(cls, said: Said) -> "Kill":
        """Return the one that was said; raises ValueError, KeyError or TypeError when it is none."""
        fields = json.loads(said.value or "")
        since = datetime.fromisoformat(fields["since"])
        kill_id = said.name.removeprefix(PREFIX)
        return cls.of(kill_id, fields["selector"], since=since, by=fields["by"], reason=fields["reason"])


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
                keep(self.known, said, Kill.of_said, "it kills nothing here")
        return heard

    def of(self, delivery: Delivery) -> Kill | None:
        """Return the first one that matches a delivery, or None."""
        return next((one for one in self.known.values() if one.matches(delivery)), None)
