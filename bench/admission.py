"""Measure admission: client CPU and wall time per job of admit + settle, and the memory a finished job keeps.

    python -m bench.admission --redis redis://127.0.0.1:6379/0 --json

Writes under its own prefix and removes what it wrote. Figures are those of the quickest of `--rounds`.
"""

import asyncio
import json
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache

import click
from redis.asyncio import Redis

from ratelimit import Candidate, Concurrency, Done, Gate, Limit, Limits, Mark, Run, fence, identity
from ratelimit.redis import RedisAdmission

BATCHES = (1, 10, 50, 200)
LIMITS = ("none", "one", "distinct", "every")
MEMORY_JOBS = 20_000
MANY = 1_000_000
EVERY_ORGANIZATIONS = 7
FENCE = fence("", 1, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """Microseconds per job; `limit` is none, one shared by all, one of 10,000 organizations' each, or every kind."""

    batch: int
    limit: str
    jobs: int
    cpu_us: float
    server_us: float
    wall_us: float


def limits_of(kind: str) -> list[Limits]:
    """Return the limits to deal out to jobs in turn; none of them ever refuses a job."""
    if kind == "every":
        return [every_limit(f"org-{n}") for n in range(EVERY_ORGANIZATIONS)]
    names = {"none": 0, "one": 1, "distinct": 10_000}[kind]
    second = timedelta(seconds=1)
    return [(Limit(f"organization:{n}", MANY, second),) for n in range(names)] or [()]


@cache
def every_limit(organization: str) -> Limits:
    """Return one limit of each kind and scope."""
    rates = ("queue", "type", "provider", f"org {organization}", f"queue and org {organization}")
    places = ("queue", "provider", f"org {organization}")
    return (
        Gate("gate"),
        *(Limit(f"rate {scope}", MANY, timedelta(seconds=1)) for scope in rates),
        *(Concurrency(f"running {scope}", MANY) for scope in places),
    )


async def server_cpu(redis: Redis) -> float:
    """Return the seconds of CPU that the server has used."""
    used = await redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


async def measure(redis: Redis, admission: RedisAdmission, batch: int, kind: str, jobs: int) -> Figure:
    """Admit and settle jobs batch by batch, everything that a worker allocates included."""
    limits = limits_of(kind)
    done, run = Done(), secrets.token_hex(4)
    names = [identity("acme-accounting", f"{run}{n:024x}") for n in range(jobs)]
    server, cpu, wall = await server_cpu(redis), time.process_time(), time.perf_counter()
    for start in range(0, jobs, batch):
        candidates = [
            Candidate(names[n], FENCE, limits[n % len(limits)])
            for n in range(start, min(start + batch, jobs))
        ]
        answers = await admission.admit(candidates)
        marks = [
            Mark(candidate.identity, answer.token, done, candidate.limits)
            for candidate, answer in zip(candidates, answers, strict=True)
            if isinstance(answer, Run)
        ]
        if len(marks) != len(candidates) or not all(await admission.settle(marks)):
            raise click.ClickException("a job that nothing stands against was refused")
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    server = await server_cpu(redis) - server
    return Figure(batch, kind, jobs, *(round(one / jobs * 1e6, 2) for one in (cpu, server, wall)))


async def bytes_per_job(redis: Redis, admission: RedisAdmission) -> float:
    """Return what the server's memory grows by for each finished job, its expiry included."""
    names = [identity("acme-accounting", secrets.token_hex(16)) for _ in range(MEMORY_JOBS)]
    before = (await redis.info("memory"))["used_memory"]
    for start in range(0, MEMORY_JOBS, 200):
        part = names[start : start + 200]
        answers = await admission.admit([Candidate(name, FENCE) for name in part])
        runs = [answer for answer in answers if isinstance(answer, Run)]
        await admission.settle([Mark(name, run.token, Done()) for name, run in zip(part, runs, strict=True)])
    after = (await redis.info("memory"))["used_memory"]
    return round(float(after - before) / MEMORY_JOBS, 1)


async def clear(redis: Redis, prefix: str) -> None:
    """Remove the keys of this run."""
    async for key in redis.scan_iter(match=f"{{{prefix}}}:*", count=1_000):
        await redis.unlink(key)


async def bench(url: str, rounds: int, jobs: int) -> dict[str, object]:
    """Return all figures."""
    prefix = f"bench-{secrets.token_hex(4)}"
    redis = Redis.from_url(url)
    admission = RedisAdmission.from_url(url, prefix=prefix)
    try:
        memory = await bytes_per_job(redis, admission)
        figures = []
        for batch in BATCHES:
            for kind in LIMITS:
                count = jobs if batch > 1 else jobs // 10
                tries = [await measure(redis, admission, batch, kind, count) for _ in range(rounds)]
                figures.append(asdict(min(tries, key=lambda figure: figure.cpu_us)))
        return {"figures": figures, "bytes_per_finished_job": memory}
    finally:
        await clear(redis, prefix)
        await admission.close()
        await redis.aclose()


@click.command()
@click.option("--redis", "url", envvar="REDIS_URL", default="redis://127.0.0.1:6379/0", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--jobs", default=20_000, show_default=True, help="Jobs a round; a tenth of it at batch 1.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(url: str, rounds: int, jobs: int, as_json: bool) -> None:
    """Measure admit + settle against a Redis that this machine can spare."""
    result = asyncio.run(bench(url, rounds, jobs))
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{'batch':>6} {'limit':>9} {'cpu µs/job':>11} {'server µs/job':>14} {'wall µs/job':>12}")
    figures = result["figures"]
    assert isinstance(figures, list)
    for row in figures:
        figures_of = f"{row['cpu_us']:>11} {row['server_us']:>14} {row['wall_us']:>12}"
        click.echo(f"{row['batch']:>6} {row['limit']:>9} {figures_of}")
    click.echo(f"{result['bytes_per_finished_job']} bytes of Redis memory per finished job")


if __name__ == "__main__":
    main()
