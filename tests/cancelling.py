"""Cancels for tests of the worker, and a handler to be cancelled."""

import asyncio
from datetime import timedelta

from uuid6 import uuid7

from streams.cancellation import Cancel, name_of
from streams.jobs import Job
from tests.rig import Do, Rig, handle

DAY = timedelta(days=1)


async def say(rig: Rig, *job_ids: str, organization: str = "acme", told: str | None = None) -> None:
    cancels = {
        name_of(organization, job_id): Cancel(str(uuid7()), "by ops", told).text() for job_id in job_ids
    }
    await rig.control.say({**cancels}, DAY)


async def cancel(rig: Rig, *job_ids: str, organization: str = "acme", told: str | None = None) -> None:
    """Cancel jobs, and let the worker hear of it at once."""
    await say(rig, *job_ids, organization=organization, told=told)
    await rig.worker.hear()


def ends(rig: Rig) -> list[tuple[str, str]]:
    going_on = ("queued", "started", "progressed")
    return [(one["jobId"], one["kind"]) for one in rig.events() if one["kind"] not in going_on]


class Slow:
    """A handler that waits with the jobs that have a number, and remembers what became of whom."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stopped: list[str] = []
        self.cleaned: list[str] = []
        self.goes_on = asyncio.Event()

    async def __call__(self, job: Job[Do]) -> None:
        self.ran.append(job.id)
        if job.payload.number:
            try:
                await self.goes_on.wait()
            except asyncio.CancelledError:
                self.stopped.append(job.id)
                await asyncio.sleep(0.01)
                self.cleaned.append(job.id)
                raise


def handled() -> Slow:
    """Register a slow handler and return it."""
    slow = Slow()

    async def runs(job: Job[Do]) -> None:
        await slow(job)

    handle(runs)
    return slow
