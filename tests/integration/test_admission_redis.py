"""Admission against a server that fails: answers lost on the way, no server, one that is full, frozen or read-only."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from devstack.process import free_port
from ratelimit import (
    AdmissionUnavailable,
    Candidate,
    Done,
    Lease,
    Leased,
    Limit,
    Limited,
    Mark,
    Run,
    Waiting,
    fence,
)
from ratelimit.redis import RedisAdmission
from tests.integration.redis_server import Server, eventually

pytestmark = pytest.mark.stack

FIRST, SECOND = fence("", 1, 0), fence("", 2, 0)
HOUR = timedelta(hours=1)
ONE = (Limit("queue:emails", 1, HOUR),)
SHORT = timedelta(milliseconds=300)


@pytest.fixture
async def admission(server: Server) -> AsyncIterator[RedisAdmission]:
    admission = RedisAdmission.from_url(server.url, timeout=SHORT)
    yield admission
    await admission.close()


@dataclass
class Proxy:
    """Passes bytes on to the server; drops the answers, or the whole connection after a request, when told."""

    target: int
    deaf: bool = False
    cut_next: bool = False
    port: int = 0
    passed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.target)
        requests = asyncio.create_task(self._copy(reader, to_server))
        try:
            while answer := await from_server.read(65_536):
                self.passed.set()
                if self.cut_next:
                    self.cut_next = False
                    break
                if not self.deaf:
                    writer.write(answer)
        finally:
            requests.cancel()
            to_server.close()
            writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.port)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    yield proxy
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def through(proxy: Proxy, server: Server) -> AsyncIterator[RedisAdmission]:
    """An admission whose connection passes through the proxy and is up, with its scripts known to the server."""
    admission = RedisAdmission.from_url(server.url.replace(str(server.port), str(proxy.port)), timeout=SHORT)
    [run] = await admission.admit([Candidate("warm:up", FIRST)])
    assert isinstance(run, Run)
    await admission.settle([Mark("warm:up", run.token, Done())])
    yield admission
    await admission.close()


async def test_an_answer_that_was_lost_is_given_again_and_counts_once(
    through: RedisAdmission, proxy: Proxy, admission: RedisAdmission
) -> None:
    batch = [Candidate("acme:1", FIRST, ONE), Candidate("acme:2", FIRST, ONE)]
    proxy.deaf = True
    with pytest.raises(AdmissionUnavailable, match=r"no answer within 0\.3 s"):
        await through.admit(batch)
    proxy.deaf = False
    [elsewhere] = await admission.admit([batch[0]])
    assert isinstance(elsewhere, Leased), "the script had run"

    run, limited = await through.admit(batch)
    assert isinstance(run, Run)
    assert run.crashes == 0
    assert isinstance(limited, Limited)
    assert limited.retry_after <= HOUR, "the limit was taken once"
    [copy] = await through.admit([batch[0]])
    assert isinstance(copy, Leased), "granted again once, not to every copy"
    assert await through.settle([Mark("acme:1", run.token, Done())]) == [True]


async def test_a_lost_lease_that_ran_out_is_no_crash(proxy: Proxy, server: Server) -> None:
    now = [datetime(2026, 4, 15, tzinfo=UTC)]
    url = server.url.replace(str(server.port), str(proxy.port))
    through = RedisAdmission.from_url(url, timeout=SHORT, clock=lambda: now[0])
    await through.ping()
    proxy.deaf = True
    with pytest.raises(AdmissionUnavailable):
        await through.admit([Candidate("acme:1", FIRST)])
    proxy.deaf = False
    now[0] += timedelta(minutes=1)
    [run] = await through.admit([Candidate("acme:1", SECOND)])
    assert isinstance(run, Run)
    assert run.crashes == 0
    await through.close()


async def test_an_admit_that_was_cancelled_is_granted_to_the_next(
    through: RedisAdmission, proxy: Proxy
) -> None:
    proxy.deaf = True
    proxy.passed.clear()
    asking = asyncio.create_task(through.admit([Candidate("acme:1", FIRST)]))
    async with asyncio.timeout(5):
        await proxy.passed.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    proxy.deaf = False
    [run] = await through.admit([Candidate("acme:1", FIRST)])
    assert isinstance(run, Run)


async def test_a_connection_cut_after_the_script_ran_is_bridged(
    through: RedisAdmission, proxy: Proxy
) -> None:
    proxy.cut_next = True
    [run] = await through.admit([Candidate("acme:1", FIRST, ONE)])
    assert isinstance(run, Run)
    assert not proxy.cut_next
    proxy.cut_next = True
    assert await through.settle([Mark("acme:1", run.token, Waiting(SECOND))]) == [True]
    [again] = await through.admit([Candidate("acme:1", SECOND)])
    assert isinstance(again, Run)
    proxy.cut_next = True
    assert await through.renew([Lease("acme:1", again.token)]) == [True]


async def test_a_mark_whose_answer_was_lost_is_true_again(through: RedisAdmission, proxy: Proxy) -> None:
    [run] = await through.admit([Candidate("acme:1", FIRST)])
    assert isinstance(run, Run)
    proxy.deaf = True
    with pytest.raises(AdmissionUnavailable):
        await through.settle([Mark("acme:1", run.token, Done())])
    proxy.deaf = False
    assert await through.settle([Mark("acme:1", run.token, Done())]) == [True]


async def test_no_server_is_told_at_once() -> None:
    admission = RedisAdmission.from_url(f"redis://127.0.0.1:{free_port()}/0")
    started = time.monotonic()
    for _ in range(3):
        with pytest.raises(AdmissionUnavailable, match=r"Redis cannot answer: Error 111 connecting"):
            await admission.admit([Candidate("acme:1", FIRST)])
    assert time.monotonic() - started < 1
    await admission.close()


async def test_a_frozen_server_is_told_in_time_and_used_when_it_is_back(
    admission: RedisAdmission, server: Server
) -> None:
    await admission.ping()
    server.process.pause()
    try:
        for ask in (
            lambda: admission.admit([Candidate("acme:1", FIRST)]),
            lambda: admission.settle([Mark("acme:1", "token", Done())]),
            lambda: admission.renew([Lease("acme:1", "token")]),
            lambda: admission.completed(["acme:1"]),
        ):
            started = time.monotonic()
            with pytest.raises(AdmissionUnavailable):
                await ask()
            assert time.monotonic() - started < 2 * SHORT.total_seconds()
    finally:
        server.process.resume()
    await server.answers()
    assert len(await admission.admit([Candidate("acme:2", FIRST)])) == 1


async def test_a_server_that_was_restarted_is_used_again(admission: RedisAdmission, server: Server) -> None:
    await admission.admit([Candidate("acme:1", FIRST)])
    server.process.kill()
    with pytest.raises(AdmissionUnavailable):
        await admission.admit([Candidate("acme:1", FIRST)])
    server.start()
    await server.answers()
    [run] = await admission.admit([Candidate("acme:2", FIRST)])  # its scripts are gone, too
    assert isinstance(run, Run)
    assert await admission.settle([Mark("acme:2", run.token, Done())]) == [True]


async def test_scripts_that_the_server_forgot_are_sent_again(
    admission: RedisAdmission, server: Server
) -> None:
    async with Redis.from_url(server.url) as redis:
        for number in range(2):
            [run] = await admission.admit([Candidate(f"acme:{number}", FIRST)])
            assert isinstance(run, Run)
            await redis.script_flush()
            assert await admission.renew([Lease(f"acme:{number}", run.token)]) == [True]
            await redis.script_flush()
            assert await admission.settle([Mark(f"acme:{number}", run.token, Done())]) == [True]
            await redis.script_flush()


async def test_a_full_or_read_only_server_changes_nothing(admission: RedisAdmission, server: Server) -> None:
    [run] = await admission.admit([Candidate("acme:1", FIRST)])
    assert isinstance(run, Run)
    async with Redis.from_url(server.url) as redis:
        for breaks, heals in (
            ({"maxmemory": "1", "maxmemory-policy": "noeviction"}, {"maxmemory": "0"}),
            ({"replicaof": f"127.0.0.1 {free_port()}"}, {"replicaof": "no one"}),
        ):
            await _configure(redis, breaks)
            with pytest.raises(AdmissionUnavailable):
                await admission.admit([Candidate("acme:2", FIRST, ONE)])
            with pytest.raises(AdmissionUnavailable):
                await admission.settle([Mark("acme:1", run.token, Done())])
            await _configure(redis, heals)
            assert await admission.completed(["acme:1"]) == [False]
    [second] = await admission.admit([Candidate("acme:2", FIRST, ONE)])
    assert isinstance(second, Run)


async def _configure(redis: Redis, changes: dict[str, str]) -> None:
    for name, value in changes.items():
        if name == "replicaof":
            await redis.execute_command("REPLICAOF", *value.split())  # type: ignore[no-untyped-call]
        else:
            await redis.config_set(name, value)


async def test_a_server_busy_with_a_script_is_unavailable(admission: RedisAdmission, server: Server) -> None:
    async with Redis.from_url(server.url) as redis, Redis.from_url(server.url) as killer:
        await redis.config_set("busy-reply-threshold", 10)
        endless = asyncio.ensure_future(redis.eval("while true do end", 0))

        async def is_unavailable() -> bool:
            try:
                await admission.renew([Lease("acme:1", "token")])
            except AdmissionUnavailable as error:
                return "BUSY" in str(error)
            return False

        try:
            await eventually(is_unavailable)
        finally:
            await killer.script_kill()
            await asyncio.gather(endless, return_exceptions=True)
