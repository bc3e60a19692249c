"""One clock for all workers: what a job waits for must not depend on which machine it waits on."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

TOLERATED = timedelta(seconds=1)
"""Clocks that are kept by NTP are closer to each other than this."""


class Clock:
    """This machine's wall clock, put right by that of Redis where the two are far apart."""

    def __init__(self, own: Callable[[], datetime]) -> None:
        self._own = own
        self._ahead = timedelta(0)

    def __call__(self) -> datetime:
        return self._own() - self._ahead if self._ahead else self._own()

    async def follow(self, ask: Callable[[], Awaitable[datetime]]) -> timedelta:
        """Ask what time it is, and return how far this machine's clock is ahead, 0 when that is tolerated."""
        before = self._own()
        theirs = await ask()
        away = (self._own() - before) / 2
        ahead = before + away - theirs
        self._ahead = ahead if abs(ahead) > TOLERATED + away else timedelta(0)
        return self._ahead
