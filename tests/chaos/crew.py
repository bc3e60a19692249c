"""The worker processes of a scene: started, hurt, and started again when they end by themselves."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from tests.chaos.history import Incident, Memory
from tests.processes import Worker

WATCH_SECONDS = 0.05
MEMORY_SECONDS = 0.5


class Member:
    """One worker process and those that take its place; everything done to it is an incident."""

    def __init__(self, worker: Worker, happened: Callable[[Incident], None], *, keep: bool) -> None:
        self.worker = worker
        self.keep = keep
        """Whether it is started again when it ends by itself, as systemd or an orchestrator does."""
        self.leaving = True
        self._happened = happened
        self._frozen_at: float | None = None
        self._last_alive = time.time()
        self._lock = threading.RLock()

    @property
    def pid(self) -> int:
        return self.worker.process.pid

    @property
    def alive(self) -> bool:
        return not self.leaving and self.worker.process.poll() is None

    def start(self) -> "Member":
        """Start it; it is ready when it runs jobs."""
        with self._lock:
            self.worker.start()
            self.leaving = False
        return self

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        with self._lock:
            self.leaving = True
            begin = time.time()
            self.worker.kill()
        self._happened(Incident("killed", begin, time.time(), self.pid))

    def terminate(self, within_seconds: float = 40) -> int:
        """Send SIGTERM, wait for its end and return its exit code."""
        begin = self.ask_to_leave()
        code = self.worker.wait(within_seconds)
        self.left(begin)
        return code

    def ask_to_leave(self) -> float:
        """Send SIGTERM and return at once with the time; `left` completes it."""
        with self._lock:
            self.leaving = True
            begin = time.time()
            self.worker.process.send_signal(signal.SIGTERM)
        return begin

    def left(self, begin: float) -> None:
        """Say that it has left."""
        self._happened(Incident("left", begin, time.time(), self.pid))

    def freeze(self) -> None:
        """Stop it with SIGSTOP."""
        self._frozen_at = time.time()
        self.worker.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        if self._frozen_at is not None:
            self.worker.process.send_signal(signal.SIGCONT)
            self._happened(Incident("frozen", self._frozen_at, time.time(), self.pid))
            self._frozen_at = None

    def look(self) -> None:
        """Notice that it ended by itself, and start it again."""
        with self._lock:
            now = time.time()
            if self.leaving or self.worker.process.poll() is None:
                self._last_alive = now
                return
            code = self.worker.process.returncode
            self._happened(Incident(f"ended with {code}", self._last_alive, now, self.pid))
            if self.keep:
                self.worker.start()
            else:
                self.leaving = True

    def stop(self) -> None:
        """End it, however it is."""
        with self._lock:
            self.leaving = True
            # What keeps a stopped worker from leaving in time says nothing about the fault.
            with suppress(subprocess.TimeoutExpired):
                self.worker.stop()


class Crew(threading.Thread):
    """All workers of a scene, and who watches them."""

    def __init__(self) -> None:
        super().__init__(name="crew", daemon=True)
        self.members: list[Member] = []
        self.incidents: list[Incident] = []
        self.memory: list[Memory] = []
        self._enough = threading.Event()

    def add(self, worker: Worker, *, keep: bool) -> Member:
        """Take a worker on; it is started by whoever asked for it."""
        member = Member(worker, self.incidents.append, keep=keep)
        self.members.append(member)
        return member

    def run(self) -> None:
        next_memory = 0.0
        while not self._enough.wait(WATCH_SECONDS):
            for member in self.members:
                member.look()
            if time.monotonic() >= next_memory:
                next_memory = time.monotonic() + MEMORY_SECONDS
                self._measure()

    def _measure(self) -> None:
        for member in self.members:
            if member.alive:
                with suppress(psutil.NoSuchProcess):
                    rss = psutil.Process(member.pid).memory_info().rss
                    self.memory.append(Memory(member.pid, time.time(), rss / 2**20))

    @property
    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    def close(self) -> None:
        """Stop watching, then stop all workers at once."""
        self._enough.set()
        self.join()
        stops = [threading.Thread(target=member.stop) for member in self.members]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
