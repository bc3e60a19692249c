"""A TCP proxy that can be told to misbehave, in a thread of its own."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from typing import Any, Literal

Mode = Literal["pass", "drop", "refuse"]
CHUNK_BYTES = 64 * 1024


class Proxy:
    """Stands before a service, on the loopback; healthy until told otherwise.

    Modes hold for connections there are and for those to come, except `refuse`, which ends the former.
    """

    def __init__(self, target_port: int, *, port: int = 0, chance: random.Random | None = None) -> None:
        self.target_port = target_port
        self.port = port
        self._chance = chance or random.Random(0)
        self._mode: Mode = "pass"
        self._delay_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._loss_per_second = 0.0
        self._swallow_answers = False
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._healthy = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"proxy {target_port}", daemon=True
        )

    def start(self) -> "Proxy":
        """Listen, on a port of its own unless one was given."""
        self._thread.start()
        self._do(self._listen())
        return self

    def close(self) -> None:
        """End all connections and stop listening."""
        self._do(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    # -- how it behaves ----------------------------------------------------------------------------------

    def heal(self) -> None:
        """Pass everything on again; what was dropped meanwhile goes through now, late, as a network does it."""
        self._do(self._set(mode="pass"))

    def slow(self, seconds: float) -> None:
        """Hold back everything, in both directions together, for so long."""
        self._do(self._set(delay=seconds))

    def drop(self) -> None:
        """Accept connections and what comes on them, and let nothing through: half-open."""
        self._do(self._set(mode="drop"))

    def swallow_answers(self) -> None:
        """Let requests through and no answer back."""
        self._do(self._set(swallow=True))

    def refuse(self) -> None:
        """End what is open and accept nothing."""
        self._do(self._refuse())

    def reset(self) -> None:
        """End what is open, without a goodbye; new connections are healthy."""
        self._do(self._reset())

    def lossy(self, per_second: float) -> None:
        """End each connection at random, with that probability in each second."""
        self._do(self._set(loss=per_second))

    def throttle(self, bytes_per_second: float) -> None:
        """Let no more than so much through, for each connection and direction."""
        self._do(self._set(bandwidth=bytes_per_second))

    @property
    def open(self) -> int:
        """Return how many connections there are."""
        return len(self._connections)

    # -- in its loop -------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._healthy.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _set(
        self,
        mode: Mode = "pass",
        delay: float = 0.0,
        bandwidth: float | None = None,
        loss: float = 0.0,
        swallow: bool = False,
    ) -> None:
        if self._server is None:
            await self._listen()
        if self._swallow_answers and not swallow:
            await self._reset()  # their streams have a hole
        self._mode, self._delay_seconds, self._bytes_per_second = mode, delay, bandwidth
        self._loss_per_second, self._swallow_answers = loss, swallow
        if mode == "drop":
            self._healthy.clear()
        else:
            self._healthy.set()

    async def _refuse(self) -> None:
        self._mode = "refuse"
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset()

    async def _reset(self) -> None:
        connections = list(self._connections.items())
        for task, client in connections:
            client.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in connections), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        upstream: asyncio.StreamWriter | None = None
        try:
            await self._healthy.wait()
            answers, upstream = await asyncio.open_connection("127.0.0.1", self.target_port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream, answers=False))
                group.create_task(self._pump(answers, writer, answers=True))
                group.create_task(self._lose(writer))
        except* (OSError, EOFError, asyncio.CancelledError):
            pass  # one of the two has gone, and so does the other; or both were reset
        finally:
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()
            del self._connections[task]

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._healthy.wait()
            if self._delay_seconds:
                await asyncio.sleep(self._delay_seconds / 2)
            if self._bytes_per_second:
                await asyncio.sleep(len(data) / self._bytes_per_second)
            if answers and self._swallow_answers:
                continue
            writer.write(data)
            await writer.drain()
        raise EOFError

    async def _lose(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(0.1)
            if self._chance.random() < self._loss_per_second / 10:
                writer.transport.abort()
                raise EOFError
