"""The tasks that a worker runs for as long as it lives."""

import asyncio
import logging
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

log = logging.getLogger(__name__)

CANCELLED_WITHIN = timedelta(seconds=3)
"""How long handlers in the loop have for cleaning up when the worker closes, once the grace is over."""

Duty = asyncio.Task[None]


class Duties:
    """Begins duties, ends them, and knows of the first that failed."""

    def __init__(self) -> None:
        self._tasks: list[Duty] = []
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        """Done when a duty has ended by an exception: the worker cannot go on and must be started again."""

    def begin(self, work: Coroutine[None, None, None], name: str) -> Duty:
        """Do something until `end`."""
        task: Duty = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: Duty) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            log.critical("%r ended by %r", task.get_name(), error, exc_info=error)
            self.failure.set_result(error)

    async def end(self, *, but: Duty | None = None) -> None:
        """Cancel all duties but one, and wait for them, though not for ever."""
        ending = [task for task in self._tasks if task is not but]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending, timeout=CANCELLED_WITHIN.total_seconds())
        self._tasks = [but] if but else []

    async def until(self, work: Coroutine[None, None, None]) -> None:
        """Wait until something is done which the duties that go on do, unless they fail or it takes too long."""
        done = asyncio.create_task(work)
        either: list[asyncio.Future[Any]] = [done, self.failure]
        within_s = CANCELLED_WITHIN.total_seconds()
        await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
