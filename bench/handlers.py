"""Job types that do nothing, so that what is measured is the pipeline."""

import asyncio
import os
from datetime import timedelta

from streams.jobs import Job, Payload, handles
from streams.queues import CRITICAL, MAINTENANCE, REPORTS


class Nothing(Payload):
    """The input of a job without work."""

    number: int
    filling: str = ""


class Limited(Payload):
    """The input of a job without work whose handler names a provider."""

    number: int


class Nap(Payload):
    """The input of a job that waits."""

    work_ms: int


@handles(CRITICAL, "bench.nothing", timeout=timedelta(seconds=10))
async def nothing(job: Job[Nothing]) -> None:
    """Return at once."""


@handles(CRITICAL, "bench.limited", timeout=timedelta(seconds=10), provider="bench")
async def limited(job: Job[Limited]) -> None:
    """Return at once."""


@handles(CRITICAL, "bench.nap", timeout=timedelta(seconds=30))
async def nap(job: Job[Nap]) -> None:
    """Wait, and leave a line in the file NAPS."""
    with open(os.environ["NAPS"], "a") as naps:  # noqa: ASYNC230 - one short line
        naps.write(job.id + "\n")
    await asyncio.sleep(job.payload.work_ms / 1000)


class Pause(Payload):
    """The input of a job that only waits."""

    work_ms: int


@handles(CRITICAL, "bench.pause", timeout=timedelta(seconds=30))
async def pause(job: Job[Pause]) -> None:
    """Wait."""
    await asyncio.sleep(job.payload.work_ms / 1000)


class Elsewhere(Payload):
    """The input of a job on `maintenance`, which no `primary` worker reads."""

    work_ms: int


@handles(MAINTENANCE, "bench.elsewhere", timeout=timedelta(seconds=30))
async def elsewhere(job: Job[Elsewhere]) -> None:
    """Wait."""
    await asyncio.sleep(job.payload.work_ms / 1000)


class Report(Payload):
    """The input of a job on `reports` that only waits."""

    work_ms: int


@handles(REPORTS, "bench.report", timeout=timedelta(seconds=30))
async def report(job: Job[Report]) -> None:
    """Wait."""
    await asyncio.sleep(job.payload.work_ms / 1000)
