"""What all tests share: the local stack, one database and one Redis database per test, no unexpected error."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from hypothesis import settings
from redis import Redis
from sqlalchemy import NullPool, create_engine, make_url, text

import devstack
from devstack import containers
from tests.processes import Pipeline
from tests.processes import pipeline as started

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def stack() -> Iterator[devstack.Stack]:
    """Start one stack for the whole test run; as containers with STACK=docker."""
    folder = Path(tempfile.mkdtemp(prefix="streams-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account, and must be able to reach its data
    start = containers.start if os.environ.get("STACK") == "docker" else devstack.start
    running = start(folder / "stack")
    yield running
    running.stop(clean=True)
    folder.rmdir()


@pytest.fixture
def database(stack: devstack.Stack) -> Iterator[str]:
    """Make an empty database for one test and yield its SQLAlchemy URL."""
    name = f"test_{uuid4().hex}"
    # No pool: a test may restart the server between making the database and dropping it.
    server = create_engine(stack.postgres, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.execute(text(f"create database {name}"))
    yield make_url(stack.postgres).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))
    server.dispose()


@pytest.fixture
def redis_url(stack: devstack.Stack) -> Iterator[str]:
    """Yield the URL of a Redis database that was empty; only that one is flushed after the test."""
    for number in range(1, 16):
        url = urlsplit(stack.redis)._replace(path=f"/{number}").geturl()
        with Redis.from_url(url) as client:
            if client.dbsize() == 0:
                break
    else:
        pytest.fail("every database of the Redis server holds keys; flush one to run the tests")
    yield url
    with Redis.from_url(url) as client:
        client.flushdb()


class ExpectedErrors:
    """The ERROR records that a test means to cause."""

    def __init__(self) -> None:
        self._patterns: list[re.Pattern[str]] = []

    def add(self, pattern: str) -> None:
        """Expect errors whose logger name and message, joined by a colon, match the pattern anywhere."""
        self._patterns.append(re.compile(pattern))

    def explain(self, record: logging.LogRecord) -> bool:
        line = f"{record.name}:{record.getMessage()}"
        return any(pattern.search(line) for pattern in self._patterns)


@pytest.fixture
def expected_errors() -> ExpectedErrors:
    return ExpectedErrors()


@pytest.fixture(autouse=True)
def _no_unexpected_error(caplog: pytest.LogCaptureFixture, expected_errors: ExpectedErrors) -> Iterator[None]:
    """Fail a test that logged an error it did not say it expects."""
    yield
    unexpected = [
        f"{record.name}: {record.getMessage()}"
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.ERROR and not expected_errors.explain(record)
    ]
    if unexpected:
        pytest.fail("logged without being expected:\n" + "\n".join(unexpected), pytrace=False)


@pytest.fixture
def pipeline(stack: devstack.Stack, redis_url: str, tmp_path: Path) -> Iterator[Pipeline]:
    """Give a test a pipeline of its own on the stack: new topics, no keys, no traces."""
    with started(stack, redis_url, tmp_path) as running:
        yield running
