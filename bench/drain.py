"""Drain a backlog of jobs that do nothing with one `primary` worker: `python -m bench.drain --jobs 20000 --json`.

Everything is on: decoding, admission and ledger in Redis, lifecycle events, positions; against the broker of a local
stack that is started for it. The figures are of the worker process alone, from its first event to its last:
jobs per second, microseconds of CPU per job (all threads, librdkafka's too), and resident memory; and beside them
the CPU per job that Redis used meanwhile.

With `--crowd 10000` one organization has all of the backlog, and so many others have one job each among it: what many
organizations cost per job, and in memory, is then the difference from a crowd of 0, where seven share the backlog.

With `--limits` each size is drained by turns without any limit and under one of every kind and scope that never
refuses a job; what the limits cost is then the difference between the best of each.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import psutil
from confluent_kafka import Consumer, TopicPartition
from redis import Redis

import devstack
from bench.handlers import Limited, Nothing
from streams import topics
from streams.client import SyncJobs
from streams.control import control_of
from streams.publication import Publication
from streams.queues import LIFECYCLE_TOPIC
from streams.rules import EACH, Rate, Rule, Scope, allowed_text
from streams.settings import Settings, load_settings

ORGANIZATIONS = 7
BATCH = 5_000
PATIENCE_SECONDS = 120.0
LOOK_SECONDS = 0.01

MANY = 1_000_000
SCOPES = (
    Scope(queue="critical"), Scope(type="bench.limited"), Scope(provider="bench"), Scope(organization=EACH),
    Scope(queue="critical", organization=EACH),
)  # fmt: skip
ONE = (Scope(queue="critical"), Scope(provider="bench"), Scope(organization=EACH))
RULES = [
    *(Rule("rate", scope, Rate(MANY, timedelta(seconds=1))) for scope in SCOPES),
    *(Rule("concurrency", scope, MANY) for scope in ONE),
]
"""Rates of a queue, a job type, a provider, each organization, and each one in the queue; concurrencies of three."""


@click.command()
@click.option(
    "--jobs", "sizes", type=click.IntRange(100), multiple=True, default=(20_000,), help="May be repeated."
)
@click.option(
    "--crowd", "crowds", type=click.IntRange(0), multiple=True, default=(0,), help="May be repeated."
)
@click.option("--limits", "limited", is_flag=True, help="Measure what limits of every kind cost.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Of --limits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def main(sizes: tuple[int, ...], crowds: tuple[int, ...], limited: bool, rounds: int, as_json: bool) -> None:
    """Drain backlogs of the given sizes one after the other, each with a worker of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o711)
        stack = devstack.start(Path(folder) / "stack")
        try:
            os.environ.update(stack.environment(), HANDLER_MODULES="bench.handlers", HEALTH_PORT="0")
            settings = load_settings()
            topics.ensure(settings)
            log = Path(folder) / "worker.log"
            for size in sizes:
                if not limited:
                    for crowd in crowds:
                        show(drained(settings, size, log, crowd=crowd), as_json)
                    continue
                found = [
                    drained(settings, size, log, under=under)
                    for _ in range(rounds)
                    for under in (False, True)
                ]
                for figures in found:
                    show(figures, as_json)
                show(cost(found), as_json)
        finally:
            stack.stop(clean=True)


def show(figures: dict[str, object], as_json: bool) -> None:
    """Print one line."""
    click.echo(json.dumps(figures) if as_json else "  ".join(f"{k}={v}" for k, v in figures.items()))


def drained(
    settings: Settings, size: int, log: Path, *, crowd: int = 0, under: bool = False
) -> dict[str, object]:
    """Publish and drain a backlog and the jobs of a crowd, under limits of every kind or under none."""
    asyncio.run(_say(settings, {rule.name: allowed_text(rule.allowed) if under else None for rule in RULES}))
    publish(settings, size, crowd, Limited if under else Nothing)
    return {**drain(settings, size + crowd, log), "crowd": crowd, "limits": under}


def cost(found: list[dict[str, object]]) -> dict[str, object]:
    """Return what the limits cost: the best figures under them against the best without."""

    def best(name: str, under: bool) -> float:
        figures = [float(str(one[name])) for one in found if one["limits"] is under]
        return max(figures) if name == "jobs_per_second" else min(figures)

    slower = 1 - best("jobs_per_second", True) / best("jobs_per_second", False)
    more = best("cpu_us_per_job", True) / best("cpu_us_per_job", False) - 1
    redis_more = best("redis_cpu_us_per_job", True) - best("redis_cpu_us_per_job", False)
    return {
        "bench": "drain --limits",
        "rules": len(RULES),
        "jobs_per_second_without": best("jobs_per_second", False),
        "jobs_per_second_under": best("jobs_per_second", True),
        "throughput_lost_percent": round(100 * slower, 1),
        "cpu_more_percent": round(100 * more, 1),
        "redis_cpu_us_more_per_job": round(redis_more, 1),
    }


async def _say(settings: Settings, values: dict[str, str | None]) -> None:
    async with control_of(settings) as control:
        await control.say(values, timedelta(days=1))


def publish(settings: Settings, size: int, crowd: int, payload: type[Nothing] | type[Limited]) -> None:
    """Publish the backlog, with the jobs of the crowd evenly among it."""
    total, every = size + crowd, (size + crowd) // crowd if crowd else 0

    def whose(number: int) -> str:
        if not crowd:
            return f"org-{number % ORGANIZATIONS}"
        which, rest = divmod(number, every)
        return "org-0" if rest or which >= crowd else f"small-{which}"

    with SyncJobs(settings) as jobs:
        for start in range(0, total, BATCH):
            numbers = range(start, min(total, start + BATCH))
            jobs.publish_many([Publication(payload(number=n), whose(n)) for n in numbers])


def drain(settings: Settings, size: int, log: Path) -> dict[str, object]:
    """Run a worker until the backlog is drained and return the figures."""
    with _events(settings) as written:
        before = written()
        with worker_process(log) as worker:
            process = psutil.Process(worker.pid)
            first = _await(lambda: written() - before, 1, worker)
            began, cpu_before, redis_before = time.monotonic(), cpu_seconds(process), _redis_cpu(settings)
            peak = 0
            for goal in (*range(first + BATCH, size, BATCH), size):
                _await(lambda: written() - before, goal, worker)
                peak = max(peak, process.memory_info().rss)
            seconds, cpu = time.monotonic() - began, cpu_seconds(process) - cpu_before
            redis_cpu = _redis_cpu(settings) - redis_before
    measured = size - first
    return {
        "bench": "drain",
        "jobs": size,
        "jobs_per_second": round(measured / seconds),
        "cpu_us_per_job": round(cpu / measured * 1e6, 1),
        "redis_cpu_us_per_job": round(redis_cpu / measured * 1e6, 1),
        "peak_rss_mib": round(peak / 2**20, 1),
        "exit_code": worker.returncode,
        "load_1m": round(os.getloadavg()[0], 1),
    }


@contextmanager
def worker_process(log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a `primary` worker until the block ends; one that is alive then is asked to leave."""
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "faust", "-A", "streams.primary", "worker"], stdout=output, stderr=output
        )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.terminate()
            worker.wait(60)


@contextmanager
def _events(settings: Settings) -> Iterator[Callable[[], int]]:
    """Yield what tells how many lifecycle events there are; asking costs the broker next to nothing."""
    consumer = Consumer({**settings.kafka, "group.id": "bench"})
    partitions = [TopicPartition(LIFECYCLE_TOPIC, number) for number in range(settings.kafka_partitions)]
    try:
        yield lambda: sum(consumer.get_watermark_offsets(one, timeout=10)[1] for one in partitions)
    finally:
        consumer.close()


def _await(done: Callable[[], int], wanted: int, worker: "subprocess.Popen[bytes]") -> int:
    """Wait until at least as many jobs as wanted are done, and return how many."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (count := done()) < wanted:
        if worker.poll() is not None:
            raise click.ClickException(
                f"the worker ended with exit code {worker.returncode}; its log is above"
            )
        if time.monotonic() > deadline:
            raise click.ClickException(f"only {count} of {wanted} jobs within {PATIENCE_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
    return count


def _redis_cpu(settings: Settings) -> float:
    with Redis.from_url(settings.redis) as redis:
        used: Any = redis.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has used, all threads together."""
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
