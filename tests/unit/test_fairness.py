"""A flood steps aside: it neither keeps others waiting nor stops its partition, and each of its jobs runs once."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest

from streams.jobs import Job
from streams.queues import INTEGRATIONS, WEBHOOKS
from tests.rig import Do, Rig, Sync, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

FLOOD = 300


async def test_a_quiet_organization_is_next_behind_a_flood_and_the_flood_comes_back() -> None:
    ran: list[tuple[str, int]] = []
    slow = True

    async def works(job: Job[Do]) -> None:
        ran.append((job.organization_id, job.payload.number))
        if slow:
            await asyncio.sleep(0.1)

    handle(works)
    async with Rig(options={"window_records": 100, "worker_concurrency": 2}) as rig:
        for number in range(20):
            rig.put(Do(number=-1 - number), organization="flood")
        await rig.settled()
        for number in range(FLOOD):
            rig.put(Do(number=number), organization="flood")
        rig.put(Do(), organization="quiet")
        window = rig.worker.pipelines[WEBHOOKS.topic].window
        assert window.records <= 60, "the window has room for others"
        before = len(ran)
        await eventually(lambda: ("quiet", 0) in ran)
        assert ran.index(("quiet", 0)) - before <= 4
        await eventually(lambda: len(rig.carried()) >= FLOOD - 60)

        slow = False
        brought = 0
        while len(rig.events("completed")) < FLOOD + 21:
            await rig.settled()
            rig.clock.ahead += timedelta(minutes=1)
            coming = rig.carried()[brought:]
            brought += len(coming)
            for message in coming:
                rig.put_again(message)
        assert set(Counter(ran).values()) == {1}
        assert set(rig.kinds()) <= {"completed", "started"}, "stepping aside is told to nobody"


async def test_what_stepped_aside_may_come_back_a_little_early() -> None:
    async def works(job: Job[Do]) -> None:
        return None

    handle(works)
    async with Rig() as rig:
        soon = int((rig.clock().timestamp() + 0.9) * 1000)
        headers = {"not-before": b"%d" % soon, "reason": b"its organization has its share"}
        rig.put(Do(), headers=headers, job_id="aside")
        rig.put(Do(), headers=headers | {"reason": b"Transient: busy"}, job_id="retry")
        await rig.settled()
        ended = {one["jobId"]: one["startedAt"].timestamp() * 1000 for one in rig.events("completed")}
        assert ended["aside"] < soon <= ended["retry"]
        far = {"not-before": b"%d" % (soon + 60_000), "reason": b"its organization has its share"}
        rig.put(Do(), headers=far, job_id="far")
        await rig.settled()
        assert len(rig.carried()) == 1


async def test_a_limited_organization_does_not_hold_its_partition() -> None:
    async def syncs(job: Job[Sync]) -> None:
        return None

    handle(syncs, INTEGRATIONS)
    async with Rig() as rig:
        for number in range(200):
            rig.put(Sync(number=number), organization="flood")
        for number in range(100):
            rig.put(Sync(number=number), organization=f"org-{number}")
        await rig.settled(INTEGRATIONS)
        aside = rig.carried()
        assert 150 < len(aside) < 200
        assert len(rig.events("completed")) == 300 - len(aside)
