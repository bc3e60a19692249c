"""A deadline over each question to Redis: for Redis, and not for a loop that stood still."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from redis.asyncio import Connection, ConnectionPool

from ratelimit.admission import AdmissionUnavailable
from ratelimit.server import Server

TIMEOUT = timedelta(milliseconds=200)


class Redis(threading.Thread):
    """Accepts one connection and answers PONG to whatever comes, once it may."""

    def __init__(self) -> None:
        super().__init__()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.may_answer = threading.Event()
        self.answered = threading.Event()

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            connection.recv(1000)
            self.may_answer.wait()
            connection.sendall(b"+PONG\r\n")
            self.answered.set()
            connection.recv(1000)


@pytest.fixture
def redis() -> Iterator[Redis]:
    redis = Redis()
    redis.start()
    yield redis
    redis.may_answer.set()
    redis.join()


@pytest.fixture
async def server(redis: Redis) -> Server:
    connections = ConnectionPool(Connection, host="127.0.0.1", port=redis.port, driver_info=None, protocol=2)
    return Server(connections, TIMEOUT)


async def test_an_answer_that_came_while_the_loop_stood_still_counts(redis: Redis, server: Server) -> None:
    def stand_still() -> None:
        redis.may_answer.set()
        redis.answered.wait()
        # Nothing is waited for: this is the loop standing still until the deadline is over.
        time.sleep(2 * TIMEOUT.total_seconds())

    asyncio.get_running_loop().call_later(0.02, stand_still)
    assert await server.execute("PING") == b"PONG"
    await server.close()


async def test_no_answer_in_time_is_said(redis: Redis, server: Server) -> None:
    with pytest.raises(AdmissionUnavailable, match=r"no answer within 0\.2 s"):
        await server.execute("PING")
    await server.close()
