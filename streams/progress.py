"""Does a worker go on? Each of its parts is asked once per second whether it has done anything since.

Alive is not enough: a loop that waits for what never comes answers every probe. So a part is stalled when it
had something to do for a while, could have done it, and did not.
"""

import faulthandler
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from streams.errors import StreamsError

LONGEST_STEP_S = 5.0
"""Most that a part is said to have stood still between two looks: a worker that was stopped itself is not to blame."""


class Stalled(StreamsError):
    """A part of the worker has stood still for so long that only a new start helps."""


class LifeSign:
    """How one part of a worker shows that it goes on.

    `what` is a sentence for the case that it does not. `could` says whether there is something that it could do
    now, `count` grows whenever it did something; both are asked once per second, so a job costs nothing.
    """

    __slots__ = ("_could", "_count", "_counted", "idle_s", "limit_s", "what")

    def __init__(
        self, what: str, *, could: Callable[[], bool], count: Callable[[], int], limit: timedelta
    ) -> None:
        self.what = what
        self.limit_s = limit.total_seconds()
        self.idle_s = 0.0
        """How long it has done nothing, though it could."""
        self._could = could
        self._count = count
        self._counted = count()

    def look(self, step_s: float) -> None:
        """Add the time since the last look, or begin again when the part went on or has nothing to do."""
        counted = self._count()
        if counted != self._counted or not self._could():
            self.idle_s = 0.0
        else:
            self.idle_s += step_s
        self._counted = counted


class Progress:
    """The life signs of a worker.

    `trouble` returns what is wrong with the broker, or None. While the broker is away, standing still is no fault
    of the worker's, and starting again would not help. It is asked at every look once something has stood still
    for half its limit: so whoever is stalled has been so for that long with the broker there.
    """

    def __init__(
        self, signs: Sequence[LifeSign], trouble: Callable[[], Awaitable[str | None]], *, now_s: float
    ) -> None:
        self._signs = signs
        self._trouble = trouble
        self._looked_at_s = now_s
        self.stalled: list[str] = []
        """A sentence for each part that stands still."""
        self.beyond_help = False
        """Whether one has stood still for twice its limit."""

    async def look(self, now_s: float) -> None:
        """Look at every part; `now_s` is monotonic."""
        step_s = min(now_s - self._looked_at_s, LONGEST_STEP_S)
        self._looked_at_s = now_s
        for sign in self._signs:
            sign.look(step_s)
        suspected = any(sign.idle_s >= sign.limit_s / 2 for sign in self._signs)
        if suspected and await self._trouble() is not None:
            for sign in self._signs:
                sign.idle_s = 0.0
        stalled = [sign for sign in self._signs if sign.idle_s >= sign.limit_s]
        self.stalled = [f"{sign.what} for {sign.idle_s:.0f} s" for sign in stalled]
        self.beyond_help = any(sign.idle_s >= 2 * sign.limit_s for sign in stalled)


def end_process(why: str) -> None:
    """End this process at once, telling what each of its threads was at; whatever it held is read again."""
    # Neither logging nor sys.stderr: the thread that stands still may hold their locks.
    os.write(2, f"CRITICAL {why}; it ends at once\n".encode())
    faulthandler.dump_traceback(2, all_threads=True)
    os._exit(1)


class Watchdog:
    """Ends the process when its event loop has stood still for too long: nothing in the loop could.

    It counts its own looks rather than time, so that a process that was stopped as a whole is not ended when it
    goes on.
    """

    def __init__(
        self,
        limit: timedelta,
        *,
        every: timedelta = timedelta(seconds=1),
        end: Callable[[str], None] = end_process,
    ) -> None:
        self._limit = limit
        self._every = every
        self._end = end
        self._beats = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch the thread that beats."""
        self._thread.start()

    def beat(self) -> None:
        """Show that the loop goes on."""
        self._beats += 1

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()

    def _run(self) -> None:
        seen, missed = self._beats, 0
        while not self._stopping.wait(self._every.total_seconds()):
            missed = missed + 1 if self._beats == seen else 0
            seen = self._beats
            if missed * self._every >= self._limit:
                self._end(f"the event loop has stood still for {self._limit.total_seconds():.0f} s")
                return
