"""What several integration tests start."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from devstack.process import Process, free_port
from devstack.valkey import server_binary
from tests.integration.redis_server import PASSWORD, Server


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    # A path to a socket may have 100 bytes at most.
    socket = Path(f"/tmp/admission-{secrets.token_hex(6)}.sock")
    command = [
        server_binary(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--unixsocket",
        str(socket),
    ]
    server = Server(
        Process(lambda: [*command, "--requirepass", PASSWORD], folder / "log", cwd=folder), port, socket
    )
    server.start()
    yield server
    server.process.stop()


@pytest.fixture
async def server(running: Server) -> AsyncIterator[Server]:
    await running.answers()
    yield running
    async with Redis.from_url(running.url) as redis:
        await redis.flushall()
