"""Let processes hammer limits and look for overshoot: `python -m bench.limits --seconds 60 --json`.

All ask for jobs of two organizations under four limits at once: a rate of the queue, a rate of each organization, a
concurrency of the queue, a concurrency of each organization. Every grant is known by the instant at which Redis took
it, so every sliding window there is is checked: none may hold more than rate x window + burst. A place is
held for certain from the answer until its job is settled; at no instant may more be.

The second organization's rate is the lowest: most of its jobs are refused by it, and none of them may cost the first
one anything, so that one must get all that is left.
"""

import asyncio
import json
import multiprocessing
import random
import secrets
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from redis import Redis

import devstack
from ratelimit import Candidate, Concurrency, Done, Limit, Limits, Mark, Run
from ratelimit.redis import RedisAdmission

SECOND = timedelta(seconds=1)
QUEUE = Limit("rate:queue", 100, SECOND, burst=20)
RATES = {
    "acme": Limit("rate:acme", 95, SECOND, burst=15),
    "globex": Limit("rate:globex", 10, SECOND, burst=3),
}
AT_ONCE = Concurrency("concurrency:queue", 8)
PLACES = {"acme": Concurrency("concurrency:acme", 7), "globex": Concurrency("concurrency:globex", 2)}
LIMITS: dict[str, Limits] = {name: (QUEUE, RATES[name], AT_ONCE, PLACES[name]) for name in RATES}

LEASE = timedelta(seconds=30)
WORK_SECONDS = 0.04
"""The mean time for which a job holds its places; from none to twice that."""
BATCH = 12
MILLISECOND_US = 1_000


@dataclass(frozen=True, slots=True)
class Grant:
    """One job that was let in: when Redis took it (to the millisecond), and when it surely held its places."""

    organization: str
    taken_ms: int
    since: float
    until: float


def hammer(url: str, prefix: str, number: int, seconds: float) -> tuple[list[Grant], int]:
    """Ask as fast as one process can, and return what was granted, and how many were refused."""
    return asyncio.run(_hammer(url, prefix, number, seconds))


async def _hammer(url: str, prefix: str, number: int, seconds: float) -> tuple[list[Grant], int]:
    chance = random.Random(number)
    admission = RedisAdmission.from_url(url, prefix=prefix, lease=LEASE)
    ends_at, asked, refused = time.monotonic() + seconds, 0, 0
    granted: list[Grant] = []
    working: set[asyncio.Task[None]] = set()
    with Redis.from_url(url) as redis:

        async def work(name: str, organization: str, token: str, taken_ms: int, since: float) -> None:
            await asyncio.sleep(chance.random() * 2 * WORK_SECONDS)
            granted.append(Grant(organization, taken_ms, since, time.monotonic()))
            held = await admission.settle([Mark(name, token, Done(), LIMITS[organization])])
            if held != [True]:
                raise click.ClickException(f"the lease of {name} was lost")

        while time.monotonic() < ends_at:
            asked += BATCH
            batch = [
                Candidate(f"{organization}:{number}-{asked - n}", "", LIMITS[organization])
                for n, organization in enumerate(chance.choices(["acme", "globex"], weights=[3, 1], k=BATCH))
            ]
            answers = await admission.admit(batch)
            since = time.monotonic()
            runs = [
                (one, answer) for one, answer in zip(batch, answers, strict=True) if isinstance(answer, Run)
            ]
            refused += len(batch) - len(runs)
            # The ledger keeps when a lease ends, and so when it was granted.
            kept: list[Any] = [redis.get(f"{{{prefix}}}:job:{one.identity}") for one, _ in runs]
            for (candidate, run), value in zip(runs, kept, strict=True):
                taken_ms = int(value.split()[1]) - LEASE // timedelta(milliseconds=1)
                organization = candidate.identity.partition(":")[0]
                doing = work(candidate.identity, organization, run.token, taken_ms, since)
                task = asyncio.create_task(doing)
                working.add(task)
                task.add_done_callback(working.discard)
            await asyncio.sleep(0.001)
        await asyncio.gather(*working)
    await admission.close()
    return granted, refused


def overshoot(limit: Limit, taken_ms: Iterable[int]) -> float:
    """Return by how many jobs the worst sliding window exceeds rate x window + burst; at most 0 when none does.

    Instants are known to the millisecond, so a window may be one longer than it looks.
    """
    least, worst = float("inf"), float("-inf")
    for count, at in enumerate(sorted(taken_ms)):
        # Of the windows that end here, the worst starts where most of the rate was left behind.
        left_behind = at * MILLISECOND_US / limit.interval_us
        least = min(least, count - left_behind)
        worst = max(worst, count - left_behind - least + 1)
    return round(worst - limit.capacity - MILLISECOND_US / limit.interval_us, 3)


def most_at_once(grants: Sequence[Grant]) -> int:
    """Return how many held a place at the same time, for certain."""
    steps = sorted([(one.until, -1) for one in grants] + [(one.since, 1) for one in grants])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def figures(grants: Sequence[Grant], refused: int, seconds: float, processes: int) -> dict[str, object]:
    """Return what came of it; `overshoot` and `over_places` must not be above zero anywhere."""
    of = {"queue": list(grants)} | {
        name: [one for one in grants if one.organization == name] for name in LIMITS
    }
    rates = {"queue": QUEUE, **RATES}
    places = {"queue": AT_ONCE, **PLACES}
    taken = [one.taken_ms for one in grants]
    spent_s = (max(taken) - min(taken)) / 1_000
    return {
        "bench": "limits",
        "processes": processes,
        "seconds": seconds,
        "granted": len(grants),
        "refused": refused,
        "overshoot": {name: overshoot(rates[name], [one.taken_ms for one in of[name]]) for name in of},
        "most_at_once": {name: most_at_once(of[name]) for name in of},
        "over_places": {name: most_at_once(of[name]) - places[name].most for name in of},
        "of_rate_percent": {
            name: round(100 * len(of[name]) / (rates[name].count * spent_s + rates[name].capacity), 1)
            for name in of
        },
    }


def bench(url: str, seconds: float, processes: int) -> dict[str, object]:
    """Hammer a Redis server and return the figures; the keys are removed."""
    prefix = f"bench-{secrets.token_hex(4)}"
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        everyone = pool.starmap(hammer, [(url, prefix, number, seconds) for number in range(processes)])
    with Redis.from_url(url) as redis:
        for key in redis.scan_iter(match=f"{{{prefix}}}:*", count=1_000):
            redis.unlink(key)
    grants = [one for mine, _ in everyone for one in mine]
    return figures(grants, sum(refused for _, refused in everyone), seconds, processes)


@click.command()
@click.option("--redis", "url", envvar="REDIS_URL", help="A server to spare; one is started when left out.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(url: str | None, seconds: float, processes: int, as_json: bool) -> None:
    """Hammer one set of limits from many processes, and exit with 1 when any was exceeded."""
    with tempfile.TemporaryDirectory(prefix="bench-") if url is None else nullcontext() as folder:
        stack = None if folder is None else devstack.start(Path(folder) / "stack")
        try:
            found = bench(url or (stack.redis if stack else ""), seconds, processes)
        finally:
            if stack is not None:
                stack.stop(clean=True)
    click.echo(
        json.dumps(found) if as_json else "\n".join(f"{name:>16}  {value}" for name, value in found.items())
    )
    over = [*_values(found["overshoot"]), *_values(found["over_places"])]
    if max(over) > 0:
        raise click.ClickException("a limit was exceeded")


def _values(figure: object) -> list[float]:
    assert isinstance(figure, dict)
    return list(figure.values())


if __name__ == "__main__":
    main()
