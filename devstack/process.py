"""Processes of this machine: started in a session of their own, found again by pid and start time."""

import fcntl
import logging
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypedDict

import psutil

log = logging.getLogger(__name__)


class Identity(TypedDict):
    """Names one process for good: a pid alone may have passed to another program."""

    pid: int
    started: float


@dataclass(slots=True)
class Process:
    """A program with its log file; `prepare` makes its data ready and returns its command line.

    It runs in a session of its own, so Ctrl-C in the caller's terminal does not reach it. `whole_tree` says
    that its children are it as well when it is killed or paused (PostgreSQL has one per connection).
    """

    prepare: Callable[[], Sequence[str]]
    log_file: Path
    cwd: Path
    env: Mapping[str, str] | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace: timedelta = timedelta(seconds=30)
    whole_tree: bool = False
    _process: psutil.Process | None = field(default=None, init=False)

    @property
    def running(self) -> bool:
        return self._process is not None and _alive(self._process)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.running else None

    @property
    def identity(self) -> Identity | None:
        if self._process is None or not self.running:
            return None
        return {"pid": self._process.pid, "started": self._process.create_time()}

    def adopt(self, identity: Identity) -> None:
        """Take over a process that an earlier run started, unless it is gone or another has its pid."""
        try:
            process = psutil.Process(identity["pid"])
            # The start time comes from the system clock and may move a little when that is set.
            same = abs(process.create_time() - identity["started"]) < 2
        except psutil.NoSuchProcess:
            return
        if same:
            self._process = process

    def start(self) -> None:
        command = self.prepare()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self._process = psutil.Popen(
                command,
                cwd=self.cwd,
                env=None if self.env is None else dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=self.user,
                group=None if self.user is None else group_of(self.user),
                extra_groups=None if self.user is None else [],
            )

    def stop(self) -> None:
        if self._process is None or not self.running:
            return
        self.resume()
        self._process.send_signal(self.stop_signal)
        if not _wait_for_end([self._process], self.grace):
            log.warning("%s did not end within %s and was killed", self._process, self.grace)
            self._kill(self._tree())

    def kill(self) -> None:
        if self._process is not None and self.running:
            self._kill(self._tree() if self.whole_tree else [self._process])

    def pause(self) -> None:
        for process in self._members():
            process.suspend()

    def resume(self) -> None:
        for process in self._members():
            process.resume()

    def log_tail(self, lines: int) -> str:
        if not self.log_file.exists():
            return f"{self.log_file} was not written"
        tail = self.log_file.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"Last lines of {self.log_file}:", *(f"  {line}" for line in tail)])

    def _members(self) -> list[psutil.Process]:
        if self._process is None or not self.running:
            return []
        return self._tree() if self.whole_tree else [self._process]

    def _tree(self) -> list[psutil.Process]:
        """Return the process and all below it, the process first so that it starts no more children."""
        assert self._process is not None
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _wait_for_end(processes, timedelta(seconds=10))


def _alive(process: psutil.Process) -> bool:
    """Tell whether a process runs; one that has ended and only waits to be collected does not.

    One whose main thread has ended lives, and holds its ports, until its last thread has.
    """
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return process.is_running() and not ended
    except psutil.NoSuchProcess:
        return False


def _wait_for_end(processes: Sequence[psutil.Process], within: timedelta) -> bool:
    """Wait until none is alive, and tell whether that came in time."""
    deadline = time.monotonic() + within.total_seconds()
    while any(map(_alive, processes)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def group_of(user: str) -> int:
    """Return the primary group id of an account."""
    import pwd

    return pwd.getpwnam(user).pw_gid


def free_port(but: Collection[int] = ()) -> int:
    """Return a TCP port of the loopback interface that nothing listens on, and none of those given.

    It lies below the range from which the kernel gives ports to outgoing connections. Otherwise a client that
    keeps trying to reach a stopped service could be given the service's own port, and hold it.
    """
    candidates = [port for port in range(20_000, 32_000) if port not in but]
    tried = random.sample(candidates, min(200, len(candidates)))
    for port in tried:
        if is_free(port):
            return port
    raise OSError(f"none of {len(tried)} ports tried between 20000 and 32000 is free")


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this port of the loopback interface now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, which the system drops when this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
