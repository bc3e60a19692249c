"""Where a job runs that may have killed workers: with no other beside it, lest others die of it or are blamed.

What holds a lease when a worker dies counts as having been run by it, begun or not. So while a suspect runs, nothing
else is admitted, and what was admitted before gives its lease back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

log = logging.getLogger(__name__)

SUSPECT_FROM = 2
"""A job under which so many workers died runs alone. The first death may be anybody's, as in a restart."""

CRASH_LIMIT = 5
"""A job under which that many workers died is dead, lest it kill the next one."""

QUIET_WITHIN = timedelta(seconds=60)
"""How long others get to end before it runs all the same, beside those that are left."""

CLEAR_WITHIN = timedelta(seconds=5)
"""How long it then waits for others' leases to be given back, and for what they did to be durable."""

ALONE_FOR = timedelta(seconds=5)
"""How long nothing else begins once it runs: what kills a worker does so soon, and others wait."""


class Quarantine:
    """What all pipelines of a worker run passes through; free of charge while there is no suspect."""

    def __init__(self) -> None:
        self.running = 0
        """How many jobs run, of all queues."""
        self.closed = False
        """A suspect waits or has just begun: nothing else may."""
        self.on_open: list[Callable[[], None]] = []
        """Called when others may begin."""
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @property
    def taken(self) -> bool:
        """Return whether a suspect waits or runs: another one may not."""
        return self._turn.locked()

    def leave(self) -> None:
        """Note that a job has ended which is no suspect."""
        self.running -= 1
        if self.closed:
            self._left.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Let a suspect run inside: once everything else has ended, and with nothing else beginning for a while."""
        async with self._turn:
            self.closed = True
            try:
                await self._quiet()
                reopening = asyncio.get_running_loop().call_later(ALONE_FOR.total_seconds(), self._open)
                self.running += 1
                try:
                    yield
                finally:
                    reopening.cancel()
                    self.running -= 1
            finally:
                self._open()

    async def _quiet(self) -> None:
        try:
            async with asyncio.timeout(QUIET_WITHIN.total_seconds()):
                while self.running:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            log.warning(
                "a job under which %d workers died, or more, runs beside %d others",
                SUSPECT_FROM,
                self.running,
            )

    def _open(self) -> None:
        self.closed = False
        for begin in self.on_open:
            begin()
