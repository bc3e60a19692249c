"""Several processes on one limit and one set of jobs: no overshoot, no job held twice, none run twice."""

import asyncio
import multiprocessing
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import pytest
from redis import Redis

import devstack
from ratelimit import Candidate, Done, Duplicate, Leased, Limit, Mark, Released, Run, Waiting, fence
from ratelimit.redis import RedisAdmission

pytestmark = pytest.mark.stack

PROCESSES = 4
DURATION_SECONDS = 3.0
JOBS = [f"acme:{number}" for number in range(60)]
LIMIT = Limit("queue:emails", 200, timedelta(seconds=1), burst=50)


@dataclass(frozen=True, slots=True)
class Held:
    """One lease as its holder saw it: `since` and `until` on the clock all processes of a machine share."""

    job: str
    fence: str
    asked: float
    since: float
    until: float
    end: str


def _hammer(url: str, prefix: str, seed: int) -> tuple[list[Held], int]:
    """Return the leases that one process held, and how often it met the lease of another."""
    return asyncio.run(_hammer_in_loop(url, prefix, random.Random(seed)))


async def _hammer_in_loop(url: str, prefix: str, chance: random.Random) -> tuple[list[Held], int]:
    admission = RedisAdmission.from_url(url, prefix=prefix)
    attempt_of: dict[str, int] = defaultdict(lambda: 1)
    held: list[Held] = []
    met = 0
    ends_at = time.monotonic() + DURATION_SECONDS
    while (asked := time.monotonic()) < ends_at:
        jobs = chance.choices(JOBS, k=20)
        batch = [Candidate(job, fence("", attempt_of[job], 0), (LIMIT,)) for job in jobs]
        answers = await admission.admit(batch)
        since = time.monotonic()
        marks: list[Mark] = []
        ran: list[tuple[Candidate, str]] = []
        for candidate, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Leased) and candidate.identity not in {one.identity for one, _ in ran}:
                met += 1
            if isinstance(answer, Duplicate):
                attempt_of[candidate.identity] += 1
            if isinstance(answer, Run):
                attempt = int(candidate.fence.split("-")[1])
                ends: list[Waiting | Released | Done] = [
                    Waiting(fence("", attempt + 1, 0)),
                    Released(),
                    Done(),
                ]
                end = chance.choices(ends, weights=[90, 8, 2])[0]
                marks.append(Mark(candidate.identity, answer.token, end))
                ran.append((candidate, type(end).__name__))
        await asyncio.sleep(chance.random() / 200)
        until = time.monotonic()
        assert all(await admission.settle(marks)), "a lease was lost that nobody could take over"
        held += [Held(one.identity, one.fence, asked, since, until, end) for one, end in ran]
    await admission.close()
    return held, met


def _most_per_window_is_kept(held: Sequence[Held]) -> None:
    # The server took each between `asked` and `since`: those certain to lie in a window are what may not exceed it.
    rate = LIMIT.count / LIMIT.per.total_seconds()
    by_answer = sorted(held, key=lambda one: one.since)
    for first in range(0, len(by_answer), 10):
        start = by_answer[first].asked
        inside = sorted(one.since for one in by_answer if one.asked >= start)
        for number, at in enumerate(inside, 1):
            assert number <= LIMIT.capacity + rate * (at - start) + 1


def test_processes_share_one_limit_and_one_ledger(stack: devstack.Stack) -> None:
    prefix = f"test-{secrets.token_hex(6)}"
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        everyone = pool.starmap(_hammer, [(stack.redis, prefix, seed) for seed in range(PROCESSES)])
    held = [one for mine, _ in everyone for one in mine]
    with Redis.from_url(stack.redis) as redis:
        left = list(redis.scan_iter(match=f"{{{prefix}}}:*", count=1_000))
        redis.delete(*left)

    assert all(mine and met for mine, met in everyone), "each process must have run jobs and met other leases"
    _most_per_window_is_kept(held)
    took = max(one.since for one in held) - min(one.asked for one in held)
    assert len(held) >= 0.5 * LIMIT.count * took, "the limit, not the test, must hold the processes back"

    of_job: dict[str, list[Held]] = defaultdict(list)
    for one in sorted(held, key=lambda one: one.since):
        of_job[one.job].append(one)
    for runs in of_job.values():
        for before, after in pairwise(runs):
            assert before.until <= after.since, "two processes held one job"
            assert before.fence <= after.fence, "a fence went back"
            assert before.end != "Done", "a done job ran again"
            assert before.fence < after.fence or before.end == "Released", "a delivery ran twice"
