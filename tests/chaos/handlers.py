"""The jobs of the catalogue: each leaves a trace of every call, and has its effect once per idempotency key.

EFFECTS_FOLDER holds `ledger`, to which every start, end and effect is appended, one file for each effect below
`effects/`, and a file `down-<what>` for as long as something that handlers need is down.
"""

import asyncio
import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from time import time as now
from typing import Any, Literal

from providers.errors import Unavailable
from streams.backoff import Backoff
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Job, Payload, Result, handles, secret
from streams.queues import CRITICAL, REPORTS, WEBHOOKS
from tests.chaos.failpoints import passed

# A handler in a process of its own belongs to the worker that started it; its processes inherit this.
WORKER = int(os.environ.get("CHAOS_WORKER_PID") or os.getpid())
os.environ["CHAOS_WORKER_PID"] = str(WORKER)

SOON = Backoff(
    first=timedelta(milliseconds=200), minimum=timedelta(milliseconds=100), cap=timedelta(seconds=2)
)
How = Literal[
    "succeed", "transient", "poison", "bug", "snooze", "downstream",
    "exit", "segfault", "kill_process", "block_loop", "never",
]  # fmt: skip


class Deed(Payload):
    """What a job of the catalogue does, and how it ends."""

    number: int = 0
    work_ms: int = 0
    how: How = "succeed"
    fail_attempts: int = 1_000
    """How many attempts end as `how` says; later ones succeed."""
    password: str = secret(default="")


class Quick(Deed):
    """On `webhooks`, in the loop; waits for Redis when that is down."""


class Urgent(Deed):
    """On `critical`, in the loop; goes on when Redis is down."""


class Threaded(Deed):
    """On `webhooks`, in a thread."""


class Apart(Deed):
    """On `reports`, in a process of its own that is killed after 4 s."""


class Done(Result):
    """Which number was worked on."""

    number: int


def folder() -> Path:
    """Return the folder of traces."""
    return Path(os.environ["EFFECTS_FOLDER"])


def note(what: str, call: str, job: Job[Any]) -> None:
    """Append one line; a single write, so that lines of many processes do not mix."""
    line = [
        what,
        call,
        job.id,
        effect_of(job.organization_id, job.idempotency_key),
        job.attempt,
        WORKER,
        now(),
    ]
    handle = os.open(folder() / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, (json.dumps(line) + "\n").encode())
    finally:
        os.close(handle)


def effect_of(organization: str, key: str) -> str:
    """Return the name of an effect."""
    return f"{organization}-{key}"


@contextmanager
def executed(job: Job[Any]) -> Iterator[str]:
    """Trace one call of a handler."""
    call = token_hex(6)
    note("start", call, job)
    try:
        yield call
    except asyncio.CancelledError:
        note("cancelled", call, job)
        raise
    except Exception:
        note("failed", call, job)
        raise
    note("end", call, job)


def end(job: Job[Any], call: str) -> Done:
    """Come to the end that the payload asks for."""
    deed = job.payload
    if job.attempt <= deed.fail_attempts:
        match deed.how:
            case "transient":
                raise Transient("try again")
            case "poison":
                raise Poison("this can never work")
            case "bug":
                raise KeyError(f"a bug with {deed!r}")
            case "snooze" if not _snoozed_before(job):
                raise Snooze("not now", delay=timedelta(seconds=1))
            case "exit":
                os._exit(41)
            case "segfault":
                ctypes.string_at(0)
            case "kill_process":
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does with what takes all memory
            case "never":
                threading.Event().wait()
            case "downstream" if (folder() / "down-downstream").exists():
                raise Unavailable("the downstream is down")
    (folder() / "effects" / effect_of(job.organization_id, job.idempotency_key)).open("a").close()
    note("effect", call, job)
    passed("after-effect")
    return Done(number=deed.number)


def _snoozed_before(job: Job[Any]) -> bool:
    """Return whether the job was put off once: a snooze spends no attempt, so the job itself cannot tell."""
    try:
        (folder() / "effects" / f".snoozed-{job.id}").touch(exist_ok=False)
    except FileExistsError:
        return True
    return False


async def _in_loop(job: Job[Any]) -> Done:
    with executed(job) as call:
        if job.payload.how == "block_loop":
            time.sleep(job.payload.work_ms / 1000)  # noqa: ASYNC251 - that is the fault
        else:
            await asyncio.sleep(job.payload.work_ms / 1000)
        return end(job, call)


def _plainly(job: Job[Any]) -> Done:
    with executed(job) as call:
        time.sleep(job.payload.work_ms / 1000)
        return end(job, call)


@handles(WEBHOOKS, "chaos.quick", timeout=timedelta(seconds=60), max_attempts=4, backoff=SOON)
async def quick(job: Job[Quick]) -> Done:
    """Work in the loop."""
    return await _in_loop(job)


@handles(CRITICAL, "chaos.urgent", timeout=timedelta(seconds=60), max_attempts=4, backoff=SOON)
async def urgent(job: Job[Urgent]) -> Done:
    """Work in the loop, on the queue that goes on without Redis."""
    return await _in_loop(job)


@handles(WEBHOOKS, "chaos.threaded", timeout=timedelta(seconds=30), max_attempts=4, backoff=SOON)
def threaded(job: Job[Threaded]) -> Done:
    """Work in a thread."""
    return _plainly(job)


@handles(
    REPORTS, "chaos.apart", timeout=timedelta(seconds=4), max_attempts=2, runs_in="process", backoff=SOON
)
def apart(job: Job[Apart]) -> Done:
    """Work in a process."""
    return _plainly(job)
