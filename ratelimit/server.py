"""How Redis is asked: one deadline over each question, scripts by their hash, and one error for "not now"."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.resources import files
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from ratelimit.admission import AdmissionUnavailable

TIMEOUT: Final = timedelta(seconds=2)

UNAVAILABLE: Final = (
    ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError, MasterDownError, ClusterDownError,
    TryAgainError, OSError,
)  # fmt: skip
UNAVAILABLE_CODES: Final = frozenset({"BUSY", "MISCONF", "NOREPLICAS"})


class Script:
    """Lua files of this package, one after the other, and the hash under which the server knows them."""

    __slots__ = ("sha", "source")

    def __init__(self, *names: str) -> None:
        self.source = b"".join(files("ratelimit").joinpath(f"{name}.lua").read_bytes() for name in names)
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()


LAST_LOOK: Final = timedelta(milliseconds=200)
"""The end of the time for an answer: when the loop stood still for all of the rest, an answer that came is read yet."""


class Server:
    """A Redis server that answers within `timeout`, or else raises AdmissionUnavailable."""

    def __init__(self, pool: ConnectionPool, timeout: timedelta = TIMEOUT) -> None:
        self._pool = pool
        self._timeout_s = timeout.total_seconds()
        self._last_look_s = min(LAST_LOOK, timeout / 2).total_seconds()

    async def call(self, script: Script, keys: list[str], arguments: Iterable[Any]) -> Any:
        """Run a script; one whose answer was lost may run twice."""
        try:
            return await self.execute("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self.execute("EVAL", script.source, len(keys), *keys, *arguments)

    async def execute(self, *command: Any) -> Any:
        """Return the answer to a command, texts as bytes."""
        # hiredis packs a batch in a tenth of the time that the client's own packing takes.
        packed = pack_command(command)
        try:
            async with self._deadline():
                try:
                    return await self._exchange(packed)
                except ConnectionError:
                    # The server may have closed the connection while it was idle. Scripts bear repeating.
                    return await self._exchange(packed)
        except UNAVAILABLE as error:
            why = str(error) or f"no answer within {self._timeout_s:g} s"
            raise AdmissionUnavailable(f"Redis cannot answer: {why}") from error
        except ResponseError as error:
            if str(error).partition(" ")[0] in UNAVAILABLE_CODES:
                raise AdmissionUnavailable(f"Redis cannot answer: {error}") from error
            raise

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as deadline:
            last_look = loop.call_later(
                self._timeout_s - self._last_look_s,
                lambda: deadline.reschedule(loop.time() + self._last_look_s),
            )
            try:
                yield
            finally:
                last_look.cancel()

    async def _exchange(self, packed: bytes) -> Any:
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(packed)
            return await connection.read_response(disable_decoding=True)
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
