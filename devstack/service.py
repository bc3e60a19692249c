"""A service of the stack: started, watched and ended by name, always at the same address."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

READY_WITHIN = timedelta(seconds=60)
_POLL_SECONDS = 0.05


class StackError(Exception):
    """The local stack cannot do what was asked; the message is written for the person who asked."""


class Runner(Protocol):
    """What runs a service: a process of this machine or a container."""

    @property
    def running(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def log_tail(self, lines: int) -> str: ...


class Service:
    """One service of the stack, for use and for fault tests.

    `handshake` speaks the service's own protocol once and raises while the service is not ready. Without one,
    a service is ready as soon as it runs.
    """

    def __init__(
        self,
        name: str,
        runner: Runner,
        *,
        handshake: Callable[[], None] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.runner = runner
        self._handshake = handshake
        self._changed = changed

    @property
    def running(self) -> bool:
        return self.runner.running

    def start(self, within: timedelta = READY_WITHIN) -> None:
        """Start the service unless it runs, and return once it answers; raise StackError at the deadline."""
        if not self.running:
            self.runner.start()
            self._changed()
        self.wait_until_ready(within)

    def stop(self) -> None:
        """End the service as an operator would, and return when it has ended."""
        self.runner.stop()
        self._changed()

    def kill(self) -> None:
        """End the service at once, as a crash would, and return when it has ended."""
        self.runner.kill()
        self._changed()

    def pause(self) -> None:
        """Freeze the service: its connections stay open and nothing answers."""
        self.runner.pause()

    def resume(self) -> None:
        """Let a paused service go on."""
        self.runner.resume()

    def wait_until_ready(self, within: timedelta = READY_WITHIN) -> None:
        """Return once the service answers; raise StackError, with the end of its log, when it does not."""
        deadline = time.monotonic() + within.total_seconds()
        while True:
            if not self.running:
                raise StackError(f"{self.name} ended while it started.\n{self.runner.log_tail(20)}")
            try:
                if self._handshake is not None:
                    self._handshake()
            except Exception as error:
                if time.monotonic() >= deadline:
                    raise StackError(
                        f"{self.name} did not answer within {within.total_seconds():g} s ({error}).\n"
                        f"{self.runner.log_tail(20)}"
                    ) from error
            else:
                return
            time.sleep(_POLL_SECONDS)
