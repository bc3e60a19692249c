"""What a Redis URL may say, and how little a user of Redis may be allowed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from ratelimit import (
    AdmissionUnavailable,
    Candidate,
    Concurrency,
    Done,
    Gate,
    InLine,
    Lease,
    Limit,
    Limited,
    Mark,
    Run,
    fence,
)
from ratelimit.backlog import Asked, Full, Left, RedisBacklog
from ratelimit.control import RedisControl
from ratelimit.redis import RedisAdmission
from tests.integration.redis_server import Server

pytestmark = pytest.mark.stack

FIRST = fence("", 1, 0)
HOUR = timedelta(hours=1)
ONE = (Limit("queue:emails", 1, HOUR),)


@pytest.mark.parametrize("where", ["tcp", "socket"])
async def test_a_url_says_user_password_and_database(server: Server, where: str) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "worker", "on", ">s3:cr/et", "~{streams}:*", "resetchannels",
            "-@all", "+evalsha", "+eval", "+get", "+mget", "+set", "+del", "+time", "+ping", "+select", "+hello",
            "+client|setinfo", "+hset", "+hmget", "+hgetall", "+hdel", "+zadd", "+zrange", "+zremrangebyscore",
            "+pexpire", "+zrangebyscore", "+zrevrange", "+zrem", "+hget", "+xadd", "+xrevrange",
        )  # fmt: skip
        url = (
            f"redis://worker:s3%3Acr%2Fet@127.0.0.1:{server.port}/5"
            if where == "tcp"
            else f"unix://worker:s3%3Acr%2Fet@{server.socket}?db=5"
        )
        admission = RedisAdmission.from_url(url)
        limits = (*ONE, Concurrency("running", 1), Gate("gate"))
        [run, refused] = await admission.admit([Candidate(f"acme:{n}", FIRST, limits) for n in (1, 2)])
        assert isinstance(run, Run)
        assert isinstance(refused, Limited)
        assert await admission.renew([Lease("acme:1", run.token, limits)]) == [True]
        place, at = InLine("emails:acme:k", 1, "acme:1", FIRST), datetime(2026, 4, 15, tzinfo=UTC)
        await admission.keep_in_line([(place, at)])
        assert await admission.ahead([replace(place, rank=2)]) == [at]
        assert await admission.settle([Mark("acme:1", run.token, Done(), limits)]) == [True]
        await admission.leave_lines([place])
        assert await admission.completed(["acme:1"]) == [True]
        await admission.push("gate", HOUR)
        await admission.lift("gate")
        assert await admission.present("primary/1", HOUR) == ["primary/1"]
        await admission.present("primary/1", timedelta(0))
        await admission.close()
        control = RedisControl.from_url(url, prefix="streams")
        for keep in (timedelta(milliseconds=1), None):
            await control.say({"a": "1"}, keep, by="ana")
            assert [said.name for said in await control.after(0)] == ["a"]
        assert len(await control.changes(5)) == 2
        await control.close()
        backlog = RedisBacklog.from_url(url)
        await redis.execute_command("ZADD", "{streams}:backlog:acme", 1, "acme:2")  # type: ignore[no-untyped-call]
        await backlog.leave([Left("acme", "acme:2")])
        await backlog.close()
        async with (
            Redis.from_url(server.url, db=5) as there,
            Redis.from_url(server.url.replace("/3", "/5")) as five,
        ):
            keys = [key for key in await five.keys() if b":control:" not in key and b":ends:" not in key]
            assert sorted(keys) == [b"{streams}:job:acme:1", b"{streams}:limit:queue:emails"]
            assert await there.ping()
        elsewhere = RedisAdmission.from_url(url, prefix="other")
        with pytest.raises(NoPermissionError):
            await elsewhere.admit([Candidate("acme:1", FIRST)])
        await elsewhere.close()


async def test_a_wrong_password_is_unavailable_and_not_repeated_in_the_message(server: Server) -> None:
    admission = RedisAdmission.from_url(f"redis://:hunter2@127.0.0.1:{server.port}/0")
    with pytest.raises(AdmissionUnavailable) as error:
        await admission.ping()
    assert "hunter2" not in str(error.value)
    await admission.close()


async def test_a_publisher_may_do_less_and_still_keeps_to_caps(server: Server) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.execute_command(  # type: ignore[no-untyped-call]
            "ACL", "SETUSER", "publisher", "on", ">secret", "~{streams}:*", "resetchannels", "-@all", "+evalsha",
            "+eval", "+time", "+ping", "+select", "+hello", "+client|setinfo", "+mget", "+hmget", "+zadd", "+zrange",
            "+zrem", "+zremrangebyscore", "+pexpire", "+zcard", "+zmscore", "+zrandmember",
        )  # fmt: skip
        operators = RedisControl.from_url(server.url)
        await operators.say({"limit:backlog:organization=acme": "1"}, None)
        await operators.close()
    url = f"redis://publisher:secret@127.0.0.1:{server.port}/3"
    control = RedisControl.from_url(url)
    assert len(await control.after(0)) == 1
    await control.close()
    backlog = RedisBacklog.from_url(url)
    assert await backlog.enter([Asked("acme", 1, ["acme:1"])]) == [frozenset(["acme:1"])]
    assert isinstance((await backlog.enter([Asked("acme", 1, ["acme:2"])]))[0], Full)
    await backlog.take_back([Left("acme", "acme:1")])
    assert await backlog.count("acme") == 0
    await backlog.close()
