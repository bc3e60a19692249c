"""The health port: an answer for a probe, and for whoever sends something else."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from streams.errors import ConfigError
from streams.health import HealthServer
from streams.jobs import Job
from streams.queues import WEBHOOKS
from streams.settings import HEALTH_PORTS, load_settings
from tests.rig import Do, Rig, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")


async def ask(port: int, request: bytes) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
async def rig(no_handlers: None) -> AsyncIterator[Rig]:
    async def waits(job: Job[Do]) -> None:
        await asyncio.sleep(60)

    handle(waits)
    async with Rig(options={"worker_concurrency": 1}) as rig:
        yield rig


def server(rig: Rig, port: int | None) -> HealthServer:
    return HealthServer(
        load_settings(_env_file=None, worker_id="worker-1", health_port=port), "primary", rig.worker
    )


async def test_it_tells_what_runs_and_what_waits(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    for _ in range(3):
        rig.put(Do())
    await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].leases())
    status, told = await ask(health.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert (told["worker"], told["type"], told["status"]) == ("worker-1", "primary", "ok")
    assert told["queues"]["webhooks"] == {"running": 1, "waiting": 2}
    await health.stop()


async def test_it_is_503_when_a_duty_has_ended(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    rig.fails = True
    rig.worker.failure.set_result(RuntimeError("for the test"))
    status, told = await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n")
    assert (status, told["status"]) == (503, "failed")
    await health.stop()


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"GET / HTTP/1.1\r\n\r\n", 404), (b"\r\n\r\n", 404), (b"", 404), (b"\xff\xff \xfe\r\n\r\n", 404)],
)
async def test_anything_else_is_404(rig: Rig, request_: bytes, status: int) -> None:
    health = server(rig, 0)
    await health.start()
    assert (await ask(health.port, request_))[0] == status
    await health.stop()


async def test_an_endless_line_is_hung_up_on(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
    writer.write(b"GET /" + b"x" * 200_000)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert (await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200
    await health.stop()


async def test_a_taken_port_is_an_error_when_it_was_asked_for_and_another_one_otherwise(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = server(rig, 0)
    await first.start()
    with pytest.raises(ConfigError, match=f"HEALTH_PORT {first.port} cannot be listened on"):
        await server(rig, first.port).start()
    monkeypatch.setitem(HEALTH_PORTS, "primary", first.port)
    second = server(rig, None)
    await second.start()
    assert second.port != first.port
    await first.stop()
    await second.stop()
