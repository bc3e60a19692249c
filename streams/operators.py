"""What operators have said of jobs, as far as this worker has heard."""

from collections.abc import Sequence
from datetime import datetime

from ratelimit.control import Said
from streams.cancellation import Cancellations
from streams.delivery import Delivery
from streams.kills import Kills
from streams.outcome import Cancelled, DeadLetter
from streams.pauses import Pauses


class Operators:
    """The cancels, kill switches and pauses that hold; asked for each delivery, and so one look while there is none."""

    def __init__(self) -> None:
        self.cancellations = Cancellations()
        self.kills = Kills()
        self.pauses = Pauses()
        self.any = False
        """Whether anything holds."""
        self.heard = 0
        """How often something was heard that matters to jobs."""

    def hear(self, news: Sequence[Said], now: datetime) -> bool:
        """Take what was said, forget what has ended, and return whether anything has changed for jobs."""
        changed = [
            self.cancellations.hear(news, now),
            self.kills.hear(news),
            self.pauses.hear(news, now),
        ]
        self.any = bool(self.cancellations.known or self.kills.known or self.pauses.known)
        self.heard += any(changed)
        return any(changed)

    def end_of(self, delivery: Delivery) -> Cancelled | DeadLetter | None:
        """Return how a delivery ends that has not begun, or None when it may begin."""
        cancel = self.cancellations.of(delivery)
        if cancel is not None:
            return cancel.outcome(delivery)
        kill = self.kills.of(delivery) if self.kills.known else None
        return None if kill is None else kill.outcome

    def withhold(self, delivery: Delivery) -> bool:
        """Return whether a delivery that has not begun may not wait for its turn any longer."""
        return self.end_of(delivery) is not None or self.pauses.aside(delivery) is not None
