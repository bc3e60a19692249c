"""Answer `GET /health` on a worker's own port: 200 while it works, 503 when it cannot go on."""

import asyncio
import json
import logging
from typing import TYPE_CHECKING

from streams.errors import ConfigError
from streams.settings import HEALTH_PORTS, Settings

if TYPE_CHECKING:
    from streams.queues import WorkerType
    from streams.worker import Worker

log = logging.getLogger(__name__)


class HealthServer:
    """A few lines of HTTP/1.0: an orchestrator's probe needs no more, and no framework stays resident for it."""

    def __init__(self, settings: Settings, worker_type: "WorkerType", worker: "Worker") -> None:
        self._settings = settings
        self._type = worker_type
        self._worker = worker
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
            status, body = self._state() if path == "/health" else (404, {"error": "expected GET /health"})
            data = json.dumps(body).encode()
            reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
            writer.write(
                f"HTTP/1.0 {status} {reason}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
                + data
            )
            await writer.drain()
        except (TimeoutError, ConnectionError, ValueError) as error:
            log.debug("a health probe went away: %r", error)
        finally:
            writer.close()

    def _state(self) -> tuple[int, dict[str, object]]:
        queues = {
            pipeline.queue.name: {"running": len(pipeline.unfinished()), "waiting": pipeline.window.records}
            for pipeline in self._worker.pipelines.values()
        }
        failed = self._worker.failure.done()
        return (503 if failed else 200), {
            "worker": self._settings.worker_id,
            "type": self._type,
            "status": "failed" if failed else "ok",
            "queues": queues,
        }
