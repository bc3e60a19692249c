"""An event loop whose time is virtual and whose order of events comes from a seed.

Processes of the simulated world share it. What belongs to one of them runs in a context that names it, so that a
process can be killed between any two steps (its callbacks are dropped) or stopped (they wait until it goes on).
"""

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)
"""The simulated process in which the code at hand runs; None for the world around all of them."""


class Stalled(Exception):
    """Nothing will ever happen again, and somebody still waits."""


class Step:
    """A callback that is due now; stands in for asyncio.Handle."""

    __slots__ = ("arguments", "callback", "context", "gone", "process")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context) -> None:
        self.callback = callback
        self.arguments = arguments
        self.context = context
        self.process = context.get(PROCESS)
        self.gone = False

    def cancel(self) -> None:
        self.gone = True

    def cancelled(self) -> bool:
        return self.gone


class Timer(Step):
    """A callback that is due later; stands in for asyncio.TimerHandle."""

    __slots__ = ("at",)

    def __init__(
        self, at: float, callback: Callable[..., object], arguments: tuple[Any, ...], context: Context
    ) -> None:
        super().__init__(callback, arguments, context)
        self.at = at

    def when(self) -> float:
        return self.at


class Process:
    """One simulated operating-system process: what runs in its context ends with it."""

    def __init__(self, loop: "Loop", name: str) -> None:
        self.loop = loop
        self.name = name
        self.world: Any = None
        """The world of which it is a part."""
        self.dead = False
        self.died_at: float | None = None
        self.stopped = False
        self.pauses: list[tuple[float, float]] = []
        """From when to when it was stopped."""
        self.steps_left: int | None = None
        """It is killed after so many more steps; None for never."""
        self._waiting: list[Step] = []
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin a coroutine in this process."""
        return self.loop.create_task(work, context=self._context.copy())

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in this process, now."""
        return self._context.copy().run(function, *arguments)

    def kill(self) -> None:
        """End it as `kill -9` does: not one more step, not even a `finally`."""
        if not self.dead:
            self.dead = True
            self.died_at = self.loop.time()

    def stop(self) -> None:
        """Stop it as SIGSTOP does: time goes on without it."""
        if not self.stopped:
            self.stopped = True
            self.pauses.append((self.loop.time(), float("inf")))

    def go_on(self) -> None:
        """Let it go on as SIGCONT does: all that came due meanwhile is due now."""
        if self.stopped:
            self.stopped = False
            self.pauses[-1] = (self.pauses[-1][0], self.loop.time())
        waiting, self._waiting = self._waiting, []
        self.loop.ready.extend(waiting)

    def admits(self, step: Step) -> bool:
        """Return whether a step may be taken now; one that may not is kept."""
        if self.steps_left is not None and not self.stopped:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.kill()
        if self.dead or self.stopped:
            self._waiting.append(step)
            return False
        return True


class NumberedTask(asyncio.Task[T]):
    """A task whose hash is its number, so that sets of tasks have the same order in every run."""

    _numbers = itertools.count()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._number = next(NumberedTask._numbers)
        super().__init__(*arguments, **options)

    def __hash__(self) -> int:
        return self._number

    @classmethod
    def number_from_zero(cls) -> None:
        """Begin to count anew."""
        cls._numbers = itertools.count()


class Loop(asyncio.AbstractEventLoop):
    """Take one step after the other; when none is due, the time jumps to the next timer."""

    def __init__(self, chance: random.Random, *, shuffled: bool) -> None:
        self.ready: deque[Step] = deque()
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        """What nobody caught."""
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._now = 0.0
        self._chance = chance
        self._shuffled = shuffled
        self._tasks: list[NumberedTask[Any]] = []
        self._closed = False

    def time(self) -> float:
        return self._now

    # -- what asyncio asks of a loop ---------------------------------------------------------------------

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> Step:
        step = Step(callback, arguments, context or copy_context())
        if not self._closed:
            self.ready.append(step)
        return step

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> Timer:
        return self.call_at(self._now + delay, callback, *arguments, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> Timer:
        timer = Timer(when, callback, arguments, context or copy_context())
        if not self._closed:
            heapq.heappush(self._timers, (when, next(self._sequence), timer))
        return timer

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> Step:
        return self.call_soon(callback, *arguments, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        task: NumberedTask[T] = NumberedTask(coro, loop=self, name=name, context=context)
        # What a killed process leaves behind must neither go on nor be collected while the world exists.
        self._tasks.append(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: None, function: Callable[..., T], *arguments: Any
    ) -> "asyncio.Future[T]":
        ended = self.create_future()
        ended.set_result(function(*arguments))
        return ended

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    # -- the run -----------------------------------------------------------------------------------------

    def run_until_complete(self, work: Coroutine[Any, Any, T], most_steps: int = 2_000_000) -> T:  # type: ignore[override]
        """Run the world until a coroutine of it has ended; raises Stalled when it never will."""
        asyncio._set_running_loop(self)
        try:
            main = self.create_task(work)
            while not main.done():
                self._step()
                if self.steps > most_steps:
                    raise Stalled(f"no end after {self.steps} steps, at {self._now:.3f} s")
            return main.result()
        finally:
            asyncio._set_running_loop(None)

    def _step(self) -> None:
        timers, ready = self._timers, self.ready
        if not ready:
            while timers and timers[0][2].gone:
                heapq.heappop(timers)
            if not timers:
                raise Stalled(f"nothing is left to happen at {self._now:.3f} s")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            ready.append(heapq.heappop(timers)[2])
        if self._shuffled and len(ready) > 1:
            ready.rotate(-self._chance.randrange(len(ready)))
        step = ready.popleft()
        if step.gone or (step.process is not None and not step.process.admits(step)):
            return
        self.steps += 1
        step.context.run(step.callback, *step.arguments)

    def end(self, processes: Iterable[Process]) -> None:
        """Cancel all that is left and let it end, so that Python finds no half-run coroutine to complain about.

        The world is over by then: nobody looks at what this does.
        """
        asyncio._set_running_loop(self)
        try:
            for process in processes:
                process.dead = process.stopped = False
                process.steps_left = None
                process.go_on()
            for _ in range(50):
                left = [task for task in self._tasks if not task.done()]
                if not left:
                    break
                for task in left:
                    task.cancel()
                while self.ready:
                    self._step()
            else:
                raise Stalled(f"{len(left)} coroutines do not end when they are cancelled: {left[0]!r}")
        finally:
            asyncio._set_running_loop(None)
            self._closed = True
            self._tasks.clear()
