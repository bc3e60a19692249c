"""Whatever is asked in whatever order: model and Redis answer the same, and the promises hold."""

import asyncio
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis.asyncio import Redis

import devstack
from ratelimit import (
    Answer,
    Candidate,
    Concurrency,
    Done,
    Duplicate,
    Gate,
    Lease,
    Limit,
    Limited,
    Limits,
    Mark,
    Released,
    Run,
    Waiting,
    fence,
)
from ratelimit.admission import EPOCH
from ratelimit.model import ModelAdmission
from ratelimit.redis import RedisAdmission

LEASE = timedelta(seconds=30)
HOUR = timedelta(hours=1)
# An hour between any two: Redis forgets a whole limit by its own clock, which must not pass within an example.
RATES = {
    "queue": [Limit("queue", 2, 2 * HOUR), Limit("queue", 9, 20 * HOUR, burst=3)],
    "organization": [
        Limit("organization", 7, 50 * HOUR, burst=3),
        Limit("organization", 1, 3 * HOUR, burst=2),
    ],
    "provider": [Limit("provider", 3, 10 * HOUR, burst=5)],
}
PLACES = {
    "running queue": [Concurrency("running queue", 2), Concurrency("running queue", 1)],
    "running organization": [Concurrency("running organization", 1), Concurrency("running organization", 3)],
}
GATE = Gate("gate")
NAMES = [*RATES, *PLACES, "gate"]
DELIVERIES = [(replay, attempt) for replay in ("", "0190") for attempt in (1, 2, 3)]

JOBS = ["acme:1", "acme:2", "acme:3", "globex:1"]
jobs = st.sampled_from(JOBS)
fences = st.sampled_from(
    [fence(replay, attempt, 0) + end for replay, attempt in DELIVERIES for end in ("", "~")]
)
ends = st.one_of(st.just(Done()), st.builds(Waiting, fences), st.just(Released()))
names_of_a_job = st.lists(st.sampled_from(NAMES + list(PLACES) * 3), max_size=4, unique=True)
questions = st.lists(st.tuples(jobs, fences, names_of_a_job, st.integers(1, 2)), min_size=1, max_size=6)
steps = st.sampled_from(
    [timedelta(microseconds=1), timedelta(milliseconds=999), LEASE / 3, LEASE, HOUR / 2, 3 * HOUR]
)


@dataclass
class Granted:
    """One granted lease under the tokens of both, and what this test believes of it."""

    job: str
    tokens: tuple[str, str]
    until: datetime
    limits: Limits = ()
    granted_at: int = 0
    """The number of the question that it answered."""
    open: bool = True


@dataclass
class Belief:
    """What must be true of one job, worked out from the answers alone."""

    done: bool = False
    fence: str = ""
    lease: Granted | None = None


@dataclass
class Twins:
    """The same question to both, answers compared."""

    url: str
    now: datetime = datetime(2026, 4, 15, 12, 0, 0, 123_456, tzinfo=UTC)
    now_limits: dict[str, Limit | Concurrency | Gate] = field(default_factory=dict)
    """The numbers that each limit has at this time."""
    asked: int = 0
    shut_until: datetime = EPOCH
    beliefs: dict[str, Belief] = field(default_factory=dict)
    leases: list[Granted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now_limits = {name: kinds[0] for name, kinds in (RATES | PLACES).items()} | {"gate": GATE}
        prefix = f"test-{secrets.token_hex(6)}"
        self.pattern = f"{{{prefix}}}:*"
        self.redis = Redis.from_url(self.url)
        self.model = ModelAdmission(lease=LEASE, clock=lambda: self.now)
        self.real = RedisAdmission.from_url(self.url, prefix=prefix, lease=LEASE, clock=lambda: self.now)

    async def flush(self) -> None:
        self.model.flush()
        async for key in self.redis.scan_iter(match=self.pattern):
            await self.redis.delete(key)
        self.beliefs.clear()
        self.shut_until = self.now

    async def close(self) -> None:
        await self.flush()
        await self.real.close()
        await self.redis.aclose()

    async def ask(self, questions: list[tuple[str, str, list[str], int]]) -> None:
        """Ask for jobs under the numbers that their limits have now."""
        batch = []
        for job, at, names, cost in questions:
            limits = tuple(self.now_limits[name] for name in names)
            most = min([one.capacity for one in limits if isinstance(one, Limit)], default=cost)
            batch.append(Candidate(job, at, limits, min(cost, most)))
        await self.admit(batch)
        self._nobody_has_too_much(batch)

    def _nobody_has_too_much(self, batch: list[Candidate]) -> None:
        """Fail when more jobs of this batch were let in than the numbers of a concurrency allow."""
        for limit in self.now_limits.values():
            if isinstance(limit, Concurrency):
                holders = [
                    one.lease
                    for one in self.beliefs.values()
                    if one.lease
                    and one.lease.open
                    and one.lease.until > self.now
                    and limit.name in _names(one.lease)
                ]
                admitted = {one.identity for one in batch} & {one.job for one in holders}
                new = [one for one in holders if one.job in admitted and one.granted_at == self.asked]
                assert len(holders) <= limit.most or not new, "too many run at a time"

    async def push(self, wait: timedelta) -> None:
        await self.model.push(GATE.name, wait)
        await self.real.push(GATE.name, wait)
        self.shut_until = max(self.shut_until, self.now + wait)

    async def lift(self) -> None:
        await self.model.lift(GATE.name)
        await self.real.lift(GATE.name)
        self.shut_until = self.now

    async def admit(self, batch: list[Candidate]) -> None:
        self.asked += 1
        expected, answers = await self.model.admit(batch), await self.real.admit(batch)
        for candidate, ours, theirs in zip(batch, expected, answers, strict=True):
            if isinstance(ours, Run) and isinstance(theirs, Run):
                assert ours.crashes == theirs.crashes
            else:
                assert ours == theirs
            self._believe(candidate, ours, theirs)

    def _believe(self, candidate: Candidate, ours: Answer, theirs: Answer) -> None:
        belief = self.beliefs.get(candidate.identity) or Belief()
        assert isinstance(ours, Duplicate) == (belief.done or candidate.fence < belief.fence)
        if isinstance(ours, Limited):
            assert ours.retry_after > timedelta(0)
        if isinstance(ours, Run) and isinstance(theirs, Run):
            assert GATE not in candidate.limits or self.shut_until <= self.now, "let in through a shut gate"
            held = belief.lease is not None and belief.lease.open and belief.lease.until > self.now
            assert not held, "two hold one job"
            self.beliefs[candidate.identity] = belief
            belief.fence = candidate.fence
            belief.lease = Granted(
                candidate.identity,
                (ours.token, theirs.token),
                self._lease_ends(),
                candidate.limits,
                self.asked,
            )
            self.leases.append(belief.lease)

    async def settle(self, lease: Granted, end: Done | Waiting | Released) -> None:
        belief = self.beliefs.get(lease.job)
        [ours] = await self.model.settle([Mark(lease.job, lease.tokens[0], end, lease.limits)])
        [theirs] = await self.real.settle([Mark(lease.job, lease.tokens[1], end, lease.limits)])
        assert ours == theirs
        if belief is None:  # flushed: nobody holds the job, so the mark counts
            assert ours
            if end != Released():
                belief = self.beliefs[lease.job] = Belief(lease=lease)
        if belief is None or belief.lease is not lease:
            return
        if lease.open:
            assert ours, "its own lease must settle"
            belief.done = end == Done()
            belief.fence = max(belief.fence, end.fence if isinstance(end, Waiting) else "")
        lease.open = False

    async def renew(self, lease: Granted) -> None:
        [ours] = await self.model.renew([Lease(lease.job, lease.tokens[0], lease.limits)])
        [theirs] = await self.real.renew([Lease(lease.job, lease.tokens[1], lease.limits)])
        assert ours == theirs
        belief = self.beliefs.get(lease.job)
        if belief is None:
            lease.open = True
            belief = self.beliefs[lease.job] = Belief(lease=lease)
        assert ours == (belief.lease is lease and lease.open)
        if ours:
            lease.until = self._lease_ends()

    async def completed(self) -> None:
        names = JOBS
        answers = await self.real.completed(names)
        assert answers == await self.model.completed(names)
        assert answers == [name in self.beliefs and self.beliefs[name].done for name in names]

    def _lease_ends(self) -> datetime:
        return self.now.replace(microsecond=self.now.microsecond // 1000 * 1000) + LEASE


def _names(lease: Granted) -> list[str]:
    return [limit.name for limit in lease.limits]


class ModelAgainstRedis(RuleBasedStateMachine):
    """Any order of calls, clock steps and flushes."""

    url = ""

    @initialize()
    def connect(self) -> None:
        self.runner = asyncio.Runner()
        self.twins = Twins(self.url)

    def teardown(self) -> None:
        self.runner.run(self.twins.close())
        self.runner.close()

    @rule(questions=questions)
    def admit(self, questions: list[tuple[str, str, list[str], int]]) -> None:
        self.runner.run(self.twins.ask(questions))

    @rule(limit=st.sampled_from([one for kinds in (RATES | PLACES).values() for one in kinds]))
    def change(self, limit: Limit | Concurrency) -> None:
        self.twins.now_limits[limit.name] = limit

    @rule(wait=steps)
    def push(self, wait: timedelta) -> None:
        self.runner.run(self.twins.push(wait))

    @rule()
    def lift(self) -> None:
        self.runner.run(self.twins.lift())

    @rule(data=st.data(), end=ends)
    def settle(self, data: st.DataObject, end: Done | Waiting | Released) -> None:
        if self.twins.leases:
            self.runner.run(self.twins.settle(data.draw(st.sampled_from(self.twins.leases[-6:])), end))

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if self.twins.leases:
            self.runner.run(self.twins.renew(data.draw(st.sampled_from(self.twins.leases[-6:]))))

    @rule(by=steps)
    def advance(self, by: timedelta) -> None:
        self.twins.now += by

    @rule()
    def completed(self) -> None:
        self.runner.run(self.twins.completed())

    @rule(sure=st.integers(0, 9))
    def flush(self, sure: int) -> None:
        if sure == 0:
            self.runner.run(self.twins.flush())


@pytest.mark.stack
def test_redis_answers_as_the_model_does(stack: devstack.Stack) -> None:
    machine = type("Machine", (ModelAgainstRedis,), {"url": stack.redis})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=40, derandomize=True),
    )


@given(
    count=st.integers(1, 20),
    burst=st.integers(1, 20),
    waits=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 4)), min_size=10, max_size=60),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_no_window_sees_more_than_the_burst_and_its_share(
    count: int, burst: int, waits: list[tuple[int, int]]
) -> None:
    clock = [datetime(2026, 4, 15, tzinfo=UTC)]
    limit = Limit("queue", count, timedelta(seconds=1), burst)
    taken: list[tuple[datetime, int]] = []

    async def ask() -> None:
        admission = ModelAdmission(clock=lambda: clock[0])
        for number, (wait_us, cost) in enumerate(waits):
            clock[0] += timedelta(microseconds=wait_us)
            if cost <= burst:
                [answer] = await admission.admit([Candidate(f"{number}", "", (limit,), cost)])
                if isinstance(answer, Limited):
                    clock[0] += answer.retry_after
                    [answer] = await admission.admit([Candidate(f"{number}", "", (limit,), cost)])
                assert isinstance(answer, Run), "it must fit when it was told to"
                taken.append((clock[0], cost))

    asyncio.run(ask())
    for first in range(len(taken)):
        spent = 0
        for at, cost in taken[first:]:
            spent += cost
            assert spent <= burst + count * (at - taken[first][0]).total_seconds()


@given(st.lists(st.tuples(st.sampled_from(["", "0190a", "0190b"]), st.integers(1, 12), st.integers(0, 12))))
def test_fences_sort_by_replay_then_attempt_then_snoozes(deliveries: list[tuple[str, int, int]]) -> None:
    for lower, higher in pairwise(sorted(set(deliveries))):
        assert fence(*lower).encode() < fence(*higher).encode()
        if lower[0] < higher[0]:
            assert fence(*lower) + "~" < fence(*higher)
