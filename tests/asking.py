"""`streams why` for tests of a rig's worker: everything but the broker and the store."""

import asyncio
from typing import Any
from unittest import mock

from streams import why
from streams.reasons import Explanation, explain
from streams.settings import load_settings
from tests.rig import Rig


async def look(
    rig: Rig, job_id: str, organization: str = "acme", *, job: Any = None, place: why.Place | None = None
) -> why.Findings:
    """Return what is known of a job, by a worker that listens as it does in earnest; the store has `job`."""
    live = rig.worker.live
    await rig.ledger.present(live.name, 2 * rig.lease)
    hearing = asyncio.create_task(_hear(rig))
    stored = None if job is None else {job_id: job}
    with (
        mock.patch.object(why, "known_jobs", return_value=stored),
        mock.patch.object(why, "place_of", return_value=place),
    ):
        found = await why.look(job_id, organization, load_settings(_env_file=None), rig.control, rig.ledger)
    hearing.cancel()
    return found


async def explained(rig: Rig, job_id: str, organization: str = "acme", **known: Any) -> Explanation:
    """Return why a job waits."""
    return explain(await look(rig, job_id, organization, **known))


async def _hear(rig: Rig) -> None:
    while True:
        await rig.worker.hear()
        await asyncio.sleep(0.005)
