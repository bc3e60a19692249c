"""What is said to all workers, over the model and over Redis."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

import devstack
from ratelimit.control import PAGE, Control, Listener, ModelControl, RedisControl

DAY = timedelta(days=1)
MILLISECOND = timedelta(milliseconds=1)


@dataclass
class Clock:
    """A clock that stands still until told."""

    now: datetime = datetime(2026, 4, 15, 12, 0, 0, 123_456, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Subject:
    """One implementation, its clock, what empties it, and how many things it holds."""

    control: Control
    clock: Clock
    redis: Redis | None = None
    prefix: str = ""

    async def flush(self) -> None:
        if isinstance(self.control, ModelControl):
            self.control.flush()
        else:
            assert self.redis is not None
            await self.redis.delete(*[f"{{{self.prefix}}}:control:{part}" for part in PARTS])

    async def sizes(self) -> set[int]:
        if isinstance(self.control, ModelControl):
            return {len(self.control._said)}
        assert self.redis is not None
        key = f"{{{self.prefix}}}:control:"
        return {
            await self.redis.zcard(key + "versions"),
            await self.redis.hlen(key + "values"),
        }

    def listener(self) -> Listener:
        return Listener(self.control, clock=self.clock)


PARTS = ("versions", "values", "ends", "changes")


@pytest.fixture(params=["model", pytest.param("redis", marks=pytest.mark.stack)])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    clock = Clock()
    if request.param == "model":
        yield Subject(ModelControl(clock=clock), clock)
        return
    stack: devstack.Stack = request.getfixturevalue("stack")
    prefix = f"test-{secrets.token_hex(6)}"
    control = RedisControl.from_url(stack.redis, prefix=prefix, clock=clock)
    async with Redis.from_url(stack.redis) as redis:
        yield Subject(control, clock, redis, prefix)
        async for key in redis.scan_iter(match=f"{{{prefix}}}:*", count=1_000):
            await redis.delete(key)
    await control.close()


async def heard(listener: Listener) -> list[tuple[str, str | None]]:
    return [(said.name, said.value) for said in await listener.news()]


async def test_nothing_is_news_before_anything_is_said(subject: Subject) -> None:
    assert await heard(subject.listener()) == []


async def test_what_is_said_is_heard_once_by_everyone_in_its_order(subject: Subject) -> None:
    early, late = subject.listener(), subject.listener()
    await subject.control.say({"b": "1", "a": "é \n = - 0"}, DAY)
    assert await heard(early) == [("b", "1"), ("a", "é \n = - 0")]
    await subject.control.say({"c": ""}, DAY)
    assert await heard(early) == [("c", "")]
    assert await heard(early) == []
    assert await heard(late) == [("b", "1"), ("a", "é \n = - 0"), ("c", "")]


async def test_of_what_was_said_twice_the_last_is_heard_and_heard_again(subject: Subject) -> None:
    early = subject.listener()
    await subject.control.say({"a": "1", "b": "1"}, DAY)
    await early.news()
    await subject.control.say({"a": "2"}, DAY)
    assert await heard(early) == [("a", "2")]
    assert await heard(subject.listener()) == [("b", "1"), ("a", "2")]


async def test_what_is_taken_back_is_heard_as_such(subject: Subject) -> None:
    listener = subject.listener()
    await subject.control.say({"a": "1"}, None)
    await listener.news()
    await subject.control.say({"a": None}, DAY)
    assert await heard(listener) == [("a", None)]


async def test_it_says_until_when_it_holds(subject: Subject) -> None:
    await subject.control.say({"a": "1"}, DAY)
    await subject.control.say({"b": "1"}, None)
    a, b = await subject.listener().news()
    assert a.until == datetime(2026, 4, 16, 12, 0, 0, 123_000, tzinfo=UTC)
    assert b.until is None
    assert a.version < b.version


async def test_what_has_ended_is_no_news(subject: Subject) -> None:
    await subject.control.say({"a": "1"}, DAY)
    await subject.control.say({"b": "1"}, None)
    subject.clock.now += DAY - MILLISECOND
    assert await heard(subject.listener()) == [("a", "1"), ("b", "1")]
    subject.clock.now += MILLISECOND
    assert await heard(subject.listener()) == [("b", "1")]


async def test_what_has_ended_is_forgotten_when_something_is_said(subject: Subject) -> None:
    await subject.control.say({"a": "1", "b": "1", "c": "1"}, DAY)
    await subject.control.say({"b": "2"}, 3 * DAY)
    await subject.control.say({"c": "2"}, None)
    subject.clock.now += 2 * DAY
    await subject.control.say({"d": "1"}, DAY)
    assert await subject.sizes() == {3}
    assert await heard(subject.listener()) == [("b", "2"), ("c", "2"), ("d", "1")]


async def test_more_than_fits_a_round_trip_is_heard_to_its_end(subject: Subject) -> None:
    listener = subject.listener()
    await subject.control.say({"first": "1"}, DAY)
    await listener.news()
    many = {f"job-{number}": "1" for number in range(2 * PAGE + 1)}
    await subject.control.say(many, DAY)
    assert [name for name, _ in await heard(listener)] == list(many)
    assert await heard(listener) == []


@pytest.mark.parametrize("step", [timedelta(0), -timedelta(hours=1)], ids=["at once", "clock set back"])
async def test_later_is_later_whatever_the_clock_says(subject: Subject, step: timedelta) -> None:
    listener = subject.listener()
    for number in range(5):
        await subject.control.say({f"a{number}": "1", f"b{number}": "1"}, DAY)
        assert await heard(listener) == [(f"a{number}", "1"), (f"b{number}", "1")]
        subject.clock.now += step


async def test_what_is_said_after_everything_was_lost_is_heard(subject: Subject) -> None:
    listener = subject.listener()
    await subject.control.say({"a": "1", "b": "1"}, DAY)
    await listener.news()
    await subject.flush()
    subject.clock.now += timedelta(microseconds=10)
    assert await heard(listener) == []
    await subject.control.say({"c": "1"}, DAY)
    assert await heard(listener) == [("c", "1")]


async def test_many_who_speak_at_once_are_all_heard(subject: Subject) -> None:
    listener = subject.listener()

    async def say(number: int) -> None:
        await subject.control.say({f"job-{number}": "1"}, DAY)

    everyone = asyncio.gather(*(say(number) for number in range(50)))
    names: list[str] = []
    while not everyone.done():
        await asyncio.sleep(0)
        names += [name for name, _ in await heard(listener)]
    await everyone
    names += [name for name, _ in await heard(listener)]
    assert sorted(names) == sorted(f"job-{number}" for number in range(50))


@pytest.mark.stack
async def test_without_a_clock_it_goes_by_that_of_redis(stack: devstack.Stack) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    control = RedisControl.from_url(stack.redis, prefix=prefix)
    await control.say({"a": "1"}, DAY)
    [said] = await Listener(control).news()
    assert said.until is not None
    assert abs(said.until - DAY - datetime.now(UTC)) < timedelta(seconds=10)
    await control.close()
    async with Redis.from_url(stack.redis) as redis:
        await redis.delete(*[f"{{{prefix}}}:control:{part}" for part in PARTS])


async def test_what_somebody_changed_is_kept_with_what_it_was(subject: Subject) -> None:
    await subject.control.say({"quiet": "1"}, None)
    await subject.control.say({"quiet": "2", "a": "1"}, None, by="ana")
    subject.clock.now += timedelta(seconds=1)
    await subject.control.say({"a": None, "b": "x y"}, DAY, by="bo")
    changes = await subject.control.changes(10)
    assert [(one.by, one.name, one.was, one.now) for one in changes] == [
        ("ana", "quiet", "1", "2"),
        ("ana", "a", None, "1"),
        ("bo", "a", "1", None),
        ("bo", "b", None, "x y"),
    ]
    assert [one.at for one in changes[1:3]] == [subject.clock.now - timedelta(seconds=1), subject.clock.now]
    assert await subject.control.changes(1) == changes[-1:]


async def test_what_workers_answer_is_kept_for_each_question_and_worker_for_a_while(subject: Subject) -> None:
    control = subject.control
    assert await control.answers("one", []) == {}
    await control.answer("one", "primary/a", '{"é": 1}', DAY)
    await control.answer("one", "primary/b", "", DAY)
    await control.answer("two", "primary/a", "other", DAY)
    asked = ["primary/b", "primary/a", "primary/silent"]
    assert await control.answers("one", asked) == {"primary/a": '{"é": 1}', "primary/b": ""}
    assert await control.answers("two", asked) == {"primary/a": "other"}
    assert await control.answers("three", asked) == {}
    assert await subject.listener().news() == [], "answers are no news"


async def test_an_answer_is_forgotten(subject: Subject) -> None:
    await subject.control.answer("one", "primary/a", "here", timedelta(milliseconds=30))

    async def gone() -> bool:
        return await subject.control.answers("one", ["primary/a"]) == {}

    assert not await gone()
    subject.clock.now += timedelta(milliseconds=31)
    deadline = asyncio.get_running_loop().time() + 5
    while not await gone():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)
