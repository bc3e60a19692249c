"""What goes by the clock of the server, in real time: leases, limits, and how long anything is kept."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from ratelimit import Candidate, Done, Duplicate, Leased, Limit, Limited, Mark, Run, fence
from ratelimit.redis import RedisAdmission

pytestmark = pytest.mark.stack

FIRST, SECOND = fence("", 1, 0), fence("", 2, 0)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Return once it holds; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.02)


async def test_leases_and_limits_go_by_the_clock_of_the_server(redis_url: str) -> None:
    lease = timedelta(milliseconds=200)
    admission = RedisAdmission.from_url(redis_url, lease=lease)
    limit = (Limit("queue:emails", 1, lease),)
    [run] = await admission.admit([Candidate("acme:1", FIRST, limit)])
    assert isinstance(run, Run)
    leased, limited = await admission.admit([Candidate("acme:1", FIRST), Candidate("acme:2", FIRST, limit)])
    assert isinstance(leased, Leased)
    assert isinstance(limited, Limited)
    assert timedelta(0) < leased.retry_after <= lease
    assert timedelta(0) < limited.retry_after <= lease
    taken: list[Run] = []

    async def takes_over() -> bool:
        [answer] = await admission.admit([Candidate("acme:1", FIRST)])
        taken.extend([answer] if isinstance(answer, Run) else [])
        return bool(taken)

    await eventually(takes_over)
    assert [run.crashes for run in taken] == [1]
    [other] = await admission.admit([Candidate("acme:2", FIRST, limit)])
    assert isinstance(other, Run)
    await admission.close()


async def test_what_is_kept_expires(redis_url: str) -> None:
    marker = timedelta(milliseconds=400)
    admission = RedisAdmission.from_url(redis_url, lease=timedelta(milliseconds=100), marker=marker)
    limit = (Limit("queue:emails", 100, timedelta(seconds=10)),)
    [run] = await admission.admit([Candidate("acme:1", FIRST, limit)])
    assert isinstance(run, Run)
    async with Redis.from_url(redis_url) as redis:
        assert 0 < await redis.pttl("{streams}:limit:queue:emails") <= 101
        await admission.settle([Mark("acme:1", run.token, Done())])
        assert 0 < await redis.pttl("{streams}:job:acme:1") <= 400
        [answer] = await admission.admit([Candidate("acme:1", SECOND)])
        assert answer == Duplicate()

        async def is_empty() -> bool:
            return await redis.dbsize() == 0

        await eventually(is_empty)
    assert await admission.completed(["acme:1"]) == [False]
    await admission.close()
