"""Job types for tests: each leaves a trace of every execution, and has its effect once per idempotency key.

EFFECTS_FOLDER holds `executions`, to which each start and end is appended, and one file per effect.
"""

import asyncio
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from streams.backoff import Backoff
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Job, Payload, Result, handles, secret
from streams.queues import CRITICAL, DOCUMENTS, WEBHOOKS

QUICK = Backoff(
    first=timedelta(milliseconds=1), minimum=timedelta(milliseconds=1), cap=timedelta(milliseconds=10)
)


class Work(Payload):
    """Work for a while, then succeed, or fail as told."""

    number: int = 0
    work_ms: int = 0
    fail_attempts: int = 0
    how: Literal["transient", "poison", "bug", "snooze"] = "transient"
    password: str = secret(default="")


class Block(Payload):
    """Sleep without giving the loop a chance."""

    work_ms: int = 0


class Compute(Payload):
    """Work in a process of its own."""

    work_ms: int = 0
    exit_code: int = Field(default=0, description="End the process with this code when it is not 0")


class Done(Result):
    """Which number was worked on."""

    number: int


def folder() -> Path:
    """Return the folder of traces."""
    return Path(os.environ["EFFECTS_FOLDER"])


def trace(what: str, job: Job[Any]) -> None:
    """Append one line about an execution; a single write, so that lines of many processes do not mix."""
    line = json.dumps([what, job.id, job.attempt, os.getpid(), time.time()]) + "\n"
    handle = os.open(folder() / "executions", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def effect(job: Job[Any]) -> None:
    """Have the effect, unless a job with the same idempotency key had it."""
    (folder() / f"{job.organization_id}-{job.idempotency_key}").open("a").close()


@handles(CRITICAL, "test.work", timeout=timedelta(seconds=30), max_attempts=3, backoff=QUICK)
async def work(job: Job[Work]) -> Done:
    """Wait in the loop."""
    trace("start", job)
    await asyncio.sleep(job.payload.work_ms / 1000)
    if job.attempt <= job.payload.fail_attempts:
        trace("failed", job)
        match job.payload.how:
            case "poison":
                raise Poison("this can never work")
            case "snooze":
                raise Snooze("not now", delay=timedelta(milliseconds=10))
            case "bug":
                raise KeyError("a bug")
            case "transient":
                raise Transient("try again")
    effect(job)
    trace("end", job)
    return Done(number=job.payload.number)


@handles(WEBHOOKS, "test.block", timeout=timedelta(milliseconds=300), max_attempts=2, backoff=QUICK)
def block(job: Job[Block]) -> None:
    """Wait in a thread."""
    trace("start", job)
    time.sleep(job.payload.work_ms / 1000)
    effect(job)
    trace("end", job)


@handles(
    DOCUMENTS, "test.compute", timeout=timedelta(seconds=3), max_attempts=2, runs_in="process", backoff=QUICK
)
def compute(job: Job[Compute]) -> None:
    """Wait in a process."""
    trace("start", job)
    job.progress(0.5, "half")
    if job.payload.exit_code:
        os._exit(job.payload.exit_code)
    time.sleep(job.payload.work_ms / 1000)
    effect(job)
    trace("end", job)


class Step(Payload):
    """One of several steps that are taken one after the other."""

    number: int
    work_ms: int = 5
    fail_attempts: int = 0
    delay_ms: int = 10


@handles(CRITICAL, "test.step", timeout=timedelta(seconds=30), max_attempts=3, backoff=QUICK, ordering="key")
async def step(job: Job[Step]) -> Done:
    """Wait in the loop."""
    trace("start", job)
    await asyncio.sleep(job.payload.work_ms / 1000)
    if job.attempt <= job.payload.fail_attempts:
        trace("failed", job)
        raise Transient("try again", delay=timedelta(milliseconds=job.payload.delay_ms))
    effect(job)
    trace("end", job)
    return Done(number=job.payload.number)
