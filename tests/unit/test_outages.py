"""Outages on a whole worker: what runs, what steps aside, what is written, and how it ends."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import cast

import pytest

from providers.errors import Unavailable
from streams.breaker import HOST_STREAK, TYPE_STREAK
from streams.delivery import Record
from streams.jobs import Job, Payload
from streams.pipeline import AT_ONCE, TURNS_IN_AN_OUTAGE
from streams.queues import WEBHOOKS
from streams.worker import Partition
from tests.conftest import ExpectedErrors
from tests.rig import Do, Rig, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

DOWN = Unavailable("no answer", host="smtp.example")
ONE_SLOT = {"worker_concurrency": 1}


class Other(Payload):
    """The input of a second job type of the same queue."""


async def others(job: Job[Other]) -> None:
    return None


class Provider:
    """What jobs of one type need, and how often they asked for it."""

    def __init__(self) -> None:
        self.down = True
        self.asked = Counter[str]()

    async def send(self, job: Job[Do]) -> None:
        self.asked[job.id] += 1
        if self.down:
            raise DOWN


async def bring_what_is_due(rig: Rig, seen: int) -> int:
    """Let three minutes pass, and hand in what came due of what was written after the first `seen`."""
    rig.clock.ahead += timedelta(minutes=3)
    waiting = rig.carried()[seen:]
    for message in waiting:
        rig.put_again(message)
    await rig.settled()
    return seen + len(waiting)


async def test_fifty_jobs_outlast_an_outage_of_two_hours_and_other_types_go_on() -> None:
    provider, rounds = Provider(), 40
    handle(provider.send, max_attempts=2)
    handle(others)
    async with Rig() as rig:
        for number in range(50):
            rig.put(Do(), organization=f"org-{number % 5}", job_id=f"job-{number}")
            rig.put(Other(), organization=f"org-{number % 5}")
        await rig.settled()
        assert len(rig.events("completed")) == 50, "the other type"
        assert provider.asked.total() <= WEBHOOKS.concurrency + HOST_STREAK, "what was under way"
        seen, before = 0, provider.asked.total()
        for _ in range(rounds):
            seen = await bring_what_is_due(rig, seen)
        assert provider.asked.total() - before <= rounds, "a probe for each cool-down"
        assert rig.events("dead") == []
        assert len(rig.events("retried")) == HOST_STREAK - 1, "attempts that were spent"
        snoozed = rig.events("snoozed")
        assert len(snoozed) == 50 * (rounds + 1) - len(rig.events("retried"))
        assert {one["reason"].split(" until ")[0] for one in snoozed} == {"outage of smtp.example"}
        provider.down = False
        for _ in range(2):
            seen = await bring_what_is_due(rig, seen)
        completed = [one["jobId"] for one in rig.events("completed") if one["jobType"] == "test.do"]
        assert sorted(completed) == sorted(f"job-{number}" for number in range(50))


async def test_what_steps_aside_takes_no_lease_and_is_told() -> None:
    provider = Provider()
    handle(provider.send)
    async with Rig(options=ONE_SLOT) as rig:
        for number in range(HOST_STREAK):
            rig.put(Do(), job_id=f"job-{number}")
        await rig.settled()
        asked = rig.ledger.asked
        rig.ledger.marks.clear()
        rig.put(Do(), job_id="aside")
        await rig.settled()
        assert (rig.ledger.asked, rig.ledger.marks) == (asked, [])
        (event,) = [one for one in rig.events() if one["jobId"] == "aside"]
        assert (event["kind"], event["attempt"], event["snoozes"]) == ("snoozed", 1, 0)
        assert event["startedAt"] is None
        carried = headers_of(rig.carried()[-1])
        assert (carried["attempt"], carried["snoozes"]) == ("1", "1")
        assert provider.asked["aside"] == 0


async def test_what_comes_behind_a_flood_of_its_organization_steps_aside_at_once() -> None:
    flood = asyncio.Event()

    async def fails(job: Job[Do]) -> None:
        await asyncio.sleep(0.05)  # of what takes long, less is kept in the window
        raise DOWN

    async def waits(job: Job[Other]) -> None:
        await flood.wait()

    handle(fails)
    handle(waits)
    async with Rig(options=ONE_SLOT | {"window_records": 100}) as rig:
        for number in range(HOST_STREAK):
            rig.put(Do(), organization=f"org-{number % 2}")
        await rig.settled()
        for _ in range(200):
            rig.put(Other(), organization="org-0")
        surplus = rig.worker.pipelines[WEBHOOKS.topic].window.surplus
        skipped = len(surplus)
        rig.put(Do(), organization="org-0", job_id="aside")
        assert len(surplus) == skipped > 0
        await eventually(lambda: "aside" in {one["jobId"] for one in rig.events("snoozed")})
        flood.set()
        await rig.settled()
        assert len(rig.events("completed")) == 200


async def test_a_probe_that_turns_out_to_be_done_leaves_its_place_to_the_next() -> None:
    provider = Provider()
    provider.down = False
    handle(provider.send)
    async with Rig(options=ONE_SLOT) as rig:
        rig.put(Do(), job_id="done")
        await rig.settled()
        provider.down = True
        for number in range(HOST_STREAK):
            rig.put(Do(), job_id=f"job-{number}")
        await rig.settled()
        provider.down = False
        rig.clock.ahead += timedelta(seconds=1)
        rig.put(Do(), job_id="done")
        rig.put(Do(), job_id="next")
        await rig.settled()
        assert provider.asked["done"] == provider.asked["next"] == 1


async def test_what_was_admitted_when_the_outage_began_gives_its_lease_back() -> None:
    provider = Provider()
    provider.down = False

    async def send(job: Job[Do]) -> None:
        provider.down = job.payload.number >= 60
        await provider.send(job)

    handle(send)
    async with Rig(options=ONE_SLOT) as rig:
        for number in range(100):
            rig.put(Do(number=number), job_id=f"job-{number}")
        await rig.settled()
        # One probe, if the machine was slow.
        assert provider.asked.total() - 60 <= HOST_STREAK + 1
        assert len(rig.events("snoozed")) == 40 - (HOST_STREAK - 1)
        assert rig.worker.pipelines[WEBHOOKS.topic].runs.leased() == []
        assert all(mark.token for mark in rig.ledger.marks)
        assert len(rig.ledger.marks) > 60 + HOST_STREAK, "some had a lease"


async def test_a_version_that_fails_every_job_buries_few(expected_errors: ExpectedErrors) -> None:
    expected_errors.add("failed on attempt 1 with KeyError")

    async def breaks(job: Job[Do]) -> None:
        raise KeyError("the new version")

    handle(breaks, max_attempts=1)
    async with Rig(options=ONE_SLOT) as rig:
        for number in range(200):
            rig.put(Do(), job_id=f"job-{number}", organization=f"org-{number % 9}")
        await rig.settled()
        assert len(rig.events("dead")) == TYPE_STREAK - 1
        assert len(rig.events("snoozed")) == 200 - (TYPE_STREAK - 1)


async def test_one_failing_job_among_others_dies_as_ever() -> None:
    async def send(job: Job[Do]) -> None:
        if job.id == "job-7":
            raise DOWN

    handle(send, max_attempts=3)
    async with Rig(options=ONE_SLOT) as rig:
        for number in range(20):
            rig.put(Do(), job_id=f"job-{number}")
        await rig.settled()
        for retry in range(2):
            rig.put_again(rig.carried()[retry])
            for number in range(20):
                rig.put(Do(), job_id=f"more-{retry}-{number}")
            await rig.settled()
        assert [one["jobId"] for one in rig.events("dead")] == ["job-7"]
        assert rig.events("snoozed") == []


async def test_in_an_outage_others_get_more_turns_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(job: Job[Do]) -> None:
        raise DOWN

    handle(fails)
    async with Rig() as rig:
        where, some = Partition(WEBHOOKS.topic, 0), [object()] * (2 * AT_ONCE)

        async def turns_between() -> int:
            offsets = rig.worker.offsets(where)
            assert offsets is not None
            turns, taken_at = 0, list[int]()
            with monkeypatch.context() as patch:
                patch.setattr(rig.worker.pipelines[where.topic], "take", lambda *_: taken_at.append(turns))
                taking = asyncio.ensure_future(rig.worker.take_all(where, cast(list[Record], some), offsets))
                while not taking.done():
                    turns += 1
                    await asyncio.sleep(0)
            return taken_at[1] - taken_at[0]

        assert await turns_between() == 1
        for number in range(HOST_STREAK):
            rig.put(Do(), organization=f"org-{number % 2}")
        await rig.settled()
        assert await turns_between() == TURNS_IN_AN_OUTAGE
