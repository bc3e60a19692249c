"""A Redis of a test's own, with a password, which it may break."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from devstack.process import Process

PASSWORD = "correct horse:/@"
PASSWORD_IN_URL = "correct%20horse%3A%2F%40"


@dataclass
class Server:
    """A server of this test's own, which it may break."""

    process: Process
    port: int
    socket: Path

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD_IN_URL}@127.0.0.1:{self.port}/3"

    def start(self) -> None:
        self.process.start()

    async def answers(self) -> None:
        """Return once it answers."""

        async def pings() -> bool:
            try:
                return await redis.ping()
            except RedisConnectionError:
                return False

        async with Redis.from_url(self.url) as redis:
            await eventually(pings)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)
