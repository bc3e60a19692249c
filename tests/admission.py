"""One implementation of admission, whichever, and what a test does with it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from ratelimit import (
    Admission,
    Answer,
    Candidate,
    Concurrency,
    Done,
    Gate,
    Lease,
    Limit,
    Mark,
    Released,
    Run,
    Waiting,
    fence,
)
from ratelimit.model import ModelAdmission

LEASE = timedelta(seconds=30)
MICROSECOND = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
FIRST, SECOND, THIRD = fence("", 1, 0), fence("", 2, 0), fence("", 3, 0)


@dataclass
class Clock:
    """A clock that stands still until told."""

    now: datetime = datetime(2026, 4, 15, 12, 0, 0, 123_000, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@dataclass
class Subject:
    """One implementation, its clock, and the means to empty it."""

    admission: Admission
    clock: Clock
    redis: Redis | None = None
    prefix: str = ""

    async def flush(self) -> None:
        if isinstance(self.admission, ModelAdmission):
            self.admission.flush()
        if self.redis is not None:
            async for key in self.redis.scan_iter(match=f"{{{self.prefix}}}:*", count=1_000):
                await self.redis.delete(key)

    async def ask(
        self, job: str, at: str = FIRST, *limits: Limit | Concurrency | Gate, cost: int = 1
    ) -> Answer:
        [answer] = await self.admission.admit([Candidate(job, at, limits, cost)])
        return answer

    async def run(self, job: str, at: str = FIRST, *limits: Limit | Concurrency | Gate) -> Run:
        answer = await self.ask(job, at, *limits)
        assert isinstance(answer, Run)
        return answer

    async def settle(self, job: str, run: Run, end: Done | Waiting | Released, *held: Concurrency) -> bool:
        [written] = await self.admission.settle([Mark(job, run.token, end, held)])
        return written

    async def renew(self, job: str, run: Run, *held: Concurrency) -> bool:
        [extended] = await self.admission.renew([Lease(job, run.token, held)])
        return extended
