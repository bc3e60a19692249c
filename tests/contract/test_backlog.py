"""How many unfinished jobs an organization may have, over the model and over Redis."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from redis.asyncio import Redis

import devstack
from ratelimit import Done, Released, Waiting
from ratelimit.backlog import BATCH_MAX, UNKNOWN_WAIT, Asked, Backlog, Full, Left, ModelBacklog, RedisBacklog
from ratelimit.model import ModelAdmission
from ratelimit.redis import RedisAdmission
from tests.admission import FIRST, LEASE, SECOND, Clock, Subject

DAY = timedelta(days=1)
KEEP = 7 * DAY


@dataclass
class Counted:
    """One implementation of the backlog, and the ledger that says which jobs have ended."""

    backlog: Backlog
    ledger: Subject

    async def enter(self, *names: str, cap: int = 3, organization: str = "acme") -> set[str] | Full:
        jobs = [f"{organization}:{name}" for name in names]
        [answer] = await self.backlog.enter([Asked(organization, cap, jobs)])
        return answer if isinstance(answer, Full) else {one.partition(":")[2] for one in answer}

    async def leave(self, *names: str, organization: str = "acme") -> None:
        await self.backlog.leave(Left(organization, f"{organization}:{name}") for name in names)

    async def end(self, name: str, end: Done | Waiting | Released | None = None) -> None:
        run = await self.ledger.run(f"acme:{name}")
        assert await self.ledger.settle(f"acme:{name}", run, end or Done())

    @property
    def clock(self) -> Clock:
        return self.ledger.clock


@pytest.fixture(params=["model", pytest.param("redis", marks=pytest.mark.stack)])
async def counted(request: pytest.FixtureRequest) -> AsyncIterator[Counted]:
    clock = Clock()
    if request.param == "model":
        model = ModelAdmission(lease=LEASE, clock=clock)
        yield Counted(ModelBacklog(model, keep=KEEP, clock=clock), Subject(model, clock))
        return
    stack: devstack.Stack = request.getfixturevalue("stack")
    prefix = f"test-{secrets.token_hex(6)}"
    redis = Redis.from_url(stack.redis)
    admission = RedisAdmission.from_url(stack.redis, prefix=prefix, lease=LEASE, clock=clock)
    backlog = RedisBacklog.from_url(stack.redis, prefix=prefix, keep=KEEP, clock=clock)
    ledger = Subject(admission, clock, redis, prefix)
    yield Counted(backlog, ledger)
    await ledger.flush()
    await admission.close()
    await backlog.close()
    await redis.aclose()


async def test_jobs_enter_up_to_the_cap_and_all_or_none_of_an_organization(counted: Counted) -> None:
    assert await counted.enter("a", "b") == {"a", "b"}
    assert await counted.enter("c", "d") == Full(3, 2, UNKNOWN_WAIT)
    assert await counted.backlog.count("acme") == 2
    assert await counted.enter("c") == {"c"}
    assert await counted.enter("d") == Full(3, 3, UNKNOWN_WAIT)
    assert await counted.enter("d", cap=4) == {"d"}
    assert await counted.enter(*"efghi") == Full(3, 4, UNKNOWN_WAIT), "a batch that never fits"


async def test_organizations_do_not_count_for_each_other(counted: Counted) -> None:
    asked = [Asked("acme", 1, ["acme:a", "acme:b"]), Asked("globex", 2, ["globex:a", "globex:b"])]
    assert await counted.backlog.enter(asked) == [
        Full(1, 0, UNKNOWN_WAIT), frozenset(["globex:a", "globex:b"]),
    ]  # fmt: skip
    assert [await counted.backlog.count(one) for one in ("acme", "globex", "initech")] == [0, 2, 0]


async def test_a_job_counts_once_however_often_it_is_published(counted: Counted) -> None:
    assert await counted.enter("a", "a", "b") == {"a", "b"}
    assert await counted.enter("a", "b", "a", "c", "c") == {"c"}
    assert await counted.enter("a", "b", "c") == set(), "nothing new, so nothing to refuse"
    assert await counted.enter("a", "b", cap=1) == set(), "nor when the cap has been lowered"
    assert await counted.backlog.count("acme") == 3


@pytest.mark.parametrize("end", [Done(), Waiting(FIRST + "~")], ids=["done", "dead"])
async def test_a_job_that_has_ended_leaves_and_does_not_come_back(
    counted: Counted, end: Done | Waiting
) -> None:
    await counted.enter("a", "b", "c")
    await counted.end("a", end)
    await counted.leave("a")
    assert await counted.backlog.count("acme") == 2
    assert await counted.enter("a") == set(), "published again, it will not run"
    assert await counted.backlog.count("acme") == 2
    assert await counted.enter("d") == {"d"}


@pytest.mark.parametrize("end", [Released(), Waiting(SECOND)], ids=["released", "retried"])
async def test_a_job_that_runs_or_runs_again_stays(counted: Counted, end: Released | Waiting) -> None:
    await counted.enter("a")
    run = await counted.ledger.run("acme:a")
    await counted.leave("a")
    assert await counted.backlog.count("acme") == 1
    await counted.ledger.settle("acme:a", run, end)
    await counted.leave("a")
    assert await counted.backlog.count("acme") == 1


async def test_a_job_that_ended_without_running_leaves(counted: Counted) -> None:
    await counted.enter("a", "b")
    await counted.leave("a", "unheard-of")
    assert await counted.backlog.count("acme") == 1


async def test_what_was_not_published_is_taken_back(counted: Counted) -> None:
    await counted.enter("a", "b")
    await counted.backlog.take_back([Left("acme", "acme:a"), Left("globex", "globex:a")])
    assert await counted.backlog.count("acme") == 1
    assert await counted.enter("a", "c") == {"a", "c"}


async def test_what_ended_unnoticed_keeps_nobody_out(counted: Counted) -> None:
    await counted.enter("a", "b", "c")
    await counted.end("b")
    assert await counted.enter("d") == {"d"}
    assert await counted.backlog.count("acme") == 3
    assert await counted.enter("e") == Full(3, 3, UNKNOWN_WAIT)


async def test_what_is_left_over_counts_no_longer_than_markers_are_kept(counted: Counted) -> None:
    await counted.enter("a")
    counted.clock.advance(DAY)
    await counted.enter("b", "c")
    counted.clock.advance(KEEP - DAY - timedelta(milliseconds=1))
    assert await counted.enter("d") == Full(3, 3, UNKNOWN_WAIT)
    counted.clock.advance(timedelta(milliseconds=1))
    assert await counted.enter("d") == {"d"}


async def test_the_wait_is_told_by_how_fast_jobs_ended(counted: Counted) -> None:
    jobs = [f"job-{number}" for number in range(200)]

    async def ends(*names: str) -> None:
        await counted.enter(*names, cap=1_000)
        await counted.leave(*names)

    async def wait(wanted: int) -> timedelta:
        full = await counted.enter(*jobs[:wanted], cap=0)
        assert isinstance(full, Full)
        return full.retry_after

    await ends(*jobs[:10])
    assert await wait(1) == timedelta(seconds=1), "never less"
    counted.clock.advance(timedelta(seconds=20))
    assert await wait(1) == timedelta(seconds=2), "10 in 20 s"
    await ends(*jobs[:30])
    assert await wait(4) == timedelta(seconds=2), "40 in 20 s"
    counted.clock.advance(timedelta(seconds=60))
    await ends(*jobs[:40])
    assert await wait(5) == timedelta(seconds=5), "80 in 80 s"
    assert await wait(200) == timedelta(seconds=200)
    counted.clock.advance(timedelta(seconds=60))
    await ends(*jobs[:60])
    assert await wait(6) == timedelta(seconds=6), "60 in 60 s: what was before is forgotten"
    counted.clock.advance(timedelta(seconds=60))
    assert await wait(200) == timedelta(minutes=5), "never more"


async def test_many_jobs_go_in_parts_and_still_all_or_none(counted: Counted) -> None:
    many = [f"job-{number}" for number in range(2 * BATCH_MAX + 10)]
    answer = await counted.enter(*many, cap=len(many) - 1)
    assert answer == Full(len(many) - 1, 0, UNKNOWN_WAIT)
    assert await counted.backlog.count("acme") == 0
    assert await counted.enter(*many, cap=len(many)) == set(many)
    await counted.leave(*many)
    assert await counted.backlog.count("acme") == 0
