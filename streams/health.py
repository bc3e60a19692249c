"""Answer on a worker's own port: is it live (`GET /health`), can it work (`GET /ready`), and its `GET /metrics`.

A worker that is not live is helped by a new start, one that is not ready by whatever it waits for.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from ratelimit import AdmissionUnavailable
from streams.errors import ConfigError
from streams.metrics import page
from streams.progress import LifeSign, Progress
from streams.settings import HEALTH_PORTS, Settings

if TYPE_CHECKING:
    from streams.pipeline import Pipeline
    from streams.queues import WorkerType
    from streams.retry import RetryForwarder
    from streams.worker import Worker

log = logging.getLogger(__name__)

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
CACHED = timedelta(seconds=1)

Check = Callable[[], Awaitable[str | None]]
"""Returns what is missing, or None."""


class Fetching(Protocol):
    """What is seen of the consumer that feeds the worker."""

    rounds: int
    assignments: int
    commits: int

    @property
    def flows(self) -> bool: ...
    @property
    def behind(self) -> bool: ...


def life_signs(
    worker: "Worker", consumer: Fetching, forwarder: "RetryForwarder", settings: Settings
) -> list[LifeSign]:
    """Return what must go on in a worker.

    A rebalance waits for every member of the group, and a commit for the group's coordinator: they get five
    times as long.
    """
    limit = settings.stalled_after
    signs = [
        LifeSign(
            "the fetching loop has not gone round",
            could=lambda: consumer.flows,
            count=lambda: consumer.rounds,
            limit=limit,
        ),
        LifeSign(
            "outcomes wait, and none was settled",
            could=lambda: worker.settlement.has_outcomes,
            count=lambda: worker.settlement.rounds,
            limit=limit,
        ),
        LifeSign(
            "the retry forwarder has not gone round",
            could=lambda: forwarder.forwards,
            count=lambda: forwarder.rounds,
            limit=limit,
        ),
        LifeSign(
            "no partitions were assigned and no rebalance has ended",
            could=lambda: not consumer.flows,
            count=lambda: consumer.assignments,
            limit=5 * limit + settings.revoke_grace,
        ),
        LifeSign(
            "positions have moved, and none was committed",
            could=lambda: consumer.behind,
            count=lambda: consumer.commits,
            limit=5 * limit,
        ),
    ]
    return signs + [sign for pipeline in worker.pipelines.values() for sign in _life_signs(pipeline, limit)]


def _life_signs(pipeline: "Pipeline", limit: timedelta) -> list[LifeSign]:
    name = pipeline.queue.name
    return [
        LifeSign(
            f"{name} has jobs to run and a slot for them, and admitted and finished none",
            could=lambda: pipeline.could_go_on,
            count=lambda: pipeline.rounds,
            limit=limit,
        ),
        LifeSign(
            f"{name} runs low of what it skipped, and has read none of it back",
            could=lambda: pipeline.refill.could_go_on,
            count=lambda: pipeline.refill.rounds,
            limit=limit,
        ),
    ]


def answering(ping: Callable[[], Awaitable[None]]) -> Check:
    """Return the check that Redis answers."""

    async def check() -> str | None:
        try:
            await ping()
        except AdmissionUnavailable as error:
            return str(error)
        return None

    return check


class Readiness:
    """What a worker misses to work; asked at most once per second, however many ask."""

    def __init__(self, checks: Sequence[Check], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._checks = checks
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at_s: float | None = None
        self._missing: list[str] = []

    async def missing(self) -> list[str]:
        """Return a sentence for each thing that is missing."""
        async with self._asking:
            now_s = self._clock()
            if self._asked_at_s is None or now_s - self._asked_at_s >= CACHED.total_seconds():
                found = await asyncio.gather(*(check() for check in self._checks))
                self._missing = [one for one in found if one is not None]
                self._asked_at_s = self._clock()
            return self._missing


class HealthServer:
    """A few lines of HTTP/1.0: an orchestrator's probe needs no more, and no framework stays resident for it.

    It is answered in the worker's event loop: where that is blocked nothing answers, and the probe's time limit
    is what tells.
    """

    def __init__(
        self,
        settings: Settings,
        worker_type: "WorkerType",
        worker: "Worker",
        progress: Progress,
        readiness: Readiness,
    ) -> None:
        self._settings = settings
        self._type = worker_type
        self._worker = worker
        self._progress = progress
        self._readiness = readiness
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on HEALTH_PORT, or on the port of the worker type; on any free one when that is taken.

        Raises ConfigError when HEALTH_PORT is set and taken.
        """
        wanted = self._settings.health_port
        port = HEALTH_PORTS[self._type] if wanted is None else wanted
        try:
            self._server = await asyncio.start_server(self._answer, self._settings.health_host, port)
        except OSError as error:
            if wanted is not None:
                raise ConfigError(f"HEALTH_PORT {port} cannot be listened on: {error.strerror}") from error
            self._server = await asyncio.start_server(self._answer, self._settings.health_host, 0)
            log.warning("port %d is taken; health is answered on %d", port, self.port)

    @property
    def port(self) -> int:
        """Return the port that is listened on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                line = await reader.readline()
                while (await reader.readline()).strip():
                    continue
            path = line.split()[1].decode("ascii", "replace") if len(line.split()) > 1 else ""
            if path == "/metrics":
                status, kind, data = 200, PROMETHEUS, page(self._worker)
            else:
                status, body = await self._state(path)
                kind, data = "application/json", json.dumps(body).encode()
            reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
            writer.write(
                f"HTTP/1.0 {status} {reason}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
                + data
            )
            await writer.drain()
        except (TimeoutError, ConnectionError, ValueError) as error:
            log.debug("a health probe went away: %r", error)
        finally:
            writer.close()

    async def _state(self, path: str) -> tuple[int, Mapping[str, object]]:
        worker = {"worker": self._settings.worker_id, "type": self._type}
        if path == "/health":
            return self._live(worker)
        if path == "/ready":
            return await self._ready(worker)
        return 404, {"error": "expected GET /health, GET /ready or GET /metrics"}

    def _live(self, worker: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        queues = {
            pipeline.queue.name: {
                "running": len(pipeline.runs.unfinished()),
                "waiting": pipeline.window.records,
                "skipped": len(pipeline.window.surplus),
            }
            for pipeline in self._worker.pipelines.values()
        }
        stalled = self._progress.stalled
        status = "failed" if self._worker.failure.done() else "stalled" if stalled else "ok"
        told = {**worker, "status": status, "queues": queues}
        return (200, told) if status == "ok" else (503, {**told, "stalled": stalled})

    async def _ready(self, worker: Mapping[str, object]) -> tuple[int, Mapping[str, object]]:
        missing = [*self._progress.stalled, *await self._readiness.missing()]
        if self._worker.failure.done():
            missing.insert(0, "the worker has failed and ends")
        status = "not ready" if missing else "ready"
        return (503 if missing else 200), {**worker, "status": status, "missing": missing}
