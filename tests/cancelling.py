"""Cancels for tests of the worker."""

from datetime import timedelta

from uuid6 import uuid7

from streams.cancellation import Cancel, name_of
from tests.rig import Rig

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
