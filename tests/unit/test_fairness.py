"""A flood is skipped and read back: it keeps nobody waiting, stops no partition, writes nothing, and runs once."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

import pytest

from streams.delivery import Record
from streams.intake import Intake
from streams.jobs import Job
from streams.offsets import PartitionOffsets
from streams.queues import INTEGRATIONS, WEBHOOKS
from streams.refill import AT_ONCE, Refill
from streams.worker import Partition
from tests.rig import Do, Rig, Sync, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

FLOOD = 3000


class Flood:
    """A handler that takes its time while `slow`, and what ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.slow = True
        self.seconds = 0.05

        async def works(job: Job[Do]) -> None:
            self.ran.append((job.organization_id, job.payload.number))
            if self.slow:
                await asyncio.sleep(self.seconds)

        handle(works)

    async def learned(self, rig: Rig) -> None:
        """Let the window learn how long a job takes."""
        for number in range(20):
            rig.put(Do(number=-1 - number), organization="flood")
        await rig.settled()
        self.ran.clear()

    def begin(self, rig: Rig, jobs: int = 200) -> None:
        """Publish so many jobs of one organization."""
        for number in range(jobs):
            rig.put(Do(number=number), organization="flood")


OPTIONS = {"window_records": 100, "worker_concurrency": 2}


async def test_a_quiet_organization_is_next_behind_a_flood_of_which_each_job_runs_once() -> None:
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig, FLOOD)
        rig.put(Do(), organization="quiet")
        window = rig.worker.pipelines[WEBHOOKS.topic].window
        assert window.records <= 60, "the window has room for others"
        assert len(window.surplus) > FLOOD - 60
        await eventually(lambda: ("quiet", 0) in flood.ran)
        assert len(flood.ran) <= 6

        flood.slow = False
        await rig.settled()
        assert set(Counter(flood.ran).values()) == {1}
        assert [number for name, number in flood.ran if name == "flood"] == [*range(FLOOD)]
        assert len(rig.events("completed")) == FLOOD + 21
        assert rig.carried() == []
        assert set(rig.kinds()) <= {"completed", "started"}
        assert not window.surplus.lanes


async def test_no_slot_is_idle_while_something_is_skipped() -> None:
    idle: list[int] = []
    flood = Flood()
    flood.seconds = 0.005
    async with Rig(options={**OPTIONS, "window_records": 500}) as rig:
        await flood.learned(rig)
        flood.begin(rig, 1000)
        pipeline = rig.worker.pipelines[WEBHOOKS.topic]
        while pipeline.window.surplus.lanes:
            idle.append(pipeline.window.records)
            await asyncio.sleep(0.001)
        await rig.settled()
        assert min(idle) > 0, "the lane was filled before it was empty"


async def test_others_get_their_turn_while_records_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[tuple[int, int]] = []
    turns = 0
    take_back = Intake.take_back

    def noted(self: Intake, records: Iterable[Record], offsets: PartitionOffsets) -> None:
        some = list(records)
        parts.append((turns, len(some)))
        take_back(self, some, offsets)

    async def takes_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(Intake, "take_back", noted)
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        skipped = len(rig.worker.pipelines[WEBHOOKS.topic].window.surplus)
        flood.slow = False
        other = asyncio.create_task(takes_turns())
        await rig.settled()
        other.cancel()
    assert sum(size for _, size in parts) == skipped
    assert max(size for _, size in parts) <= AT_ONCE
    assert len({turn for turn, _ in parts}) == len(parts) >= skipped // AT_ONCE > 1


async def test_a_handover_forgets_what_is_skipped_and_it_is_read_again() -> None:
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        position = rig.position()
        assert position is not None
        window = rig.worker.pipelines[WEBHOOKS.topic].window
        await rig.worker.hand_over(timedelta(seconds=5))
        committed = rig.position()
        assert committed is not None
        assert position <= committed < 220
        assert not window.surplus.lanes
        rig.worker.forget()
        flood.slow = False
        rig.come_back(committed)
        await rig.settled()
        assert set(Counter(flood.ran).values()) == {1}
        assert len(flood.ran) == 200


async def test_a_broker_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.refill.RETRY", timedelta(milliseconds=5))
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        rig.shelf.down = True
        flood.begin(rig)
        flood.slow = False
        window = rig.worker.pipelines[WEBHOOKS.topic].window
        await eventually(lambda: window.records == 0 and len(flood.ran) == 200 - len(window.surplus))
        assert 50 <= len(flood.ran) < 70
        rig.shelf.down = False
        await rig.settled()
        assert [number for _, number in flood.ran] == [*range(200)]


async def test_what_retention_has_taken_is_settled_and_told(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        rig.shelf.starts[WEBHOOKS.topic, 0] = 20 + 150
        flood.slow = False
        await rig.settled()
        numbers = [number for _, number in flood.ran]
        assert numbers[-50:] == [*range(150, 200)]
        assert 90 < len(numbers) < 130
        assert "records from jobs.webhooks/0/" in caplog.text


async def test_what_does_not_come_though_it_is_there_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.refill.RETRY", timedelta(milliseconds=5))
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        log = rig.shelf.records[WEBHOOKS.topic, 0]
        lost = log.pop(20 + 120)
        flood.slow = False
        await eventually(lambda: len(flood.ran) >= 60)
        await eventually(lambda: not rig.worker.pipelines[WEBHOOKS.topic].window.records)
        log[lost.offset] = lost
        await rig.settled()
        assert [number for _, number in flood.ran] == [*range(200)]


async def test_an_invalid_record_that_was_skipped_is_refused_when_it_is_read_back() -> None:
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        rig.put_bytes(WEBHOOKS, b"flood", b"no avro", {})
        assert rig.written(WEBHOOKS.dead_letter_topic) == []
        flood.slow = False
        await rig.settled()
        assert len(rig.written(WEBHOOKS.dead_letter_topic)) == 1


async def test_an_urgent_job_of_a_flood_is_taken_in_by_its_header() -> None:
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        rig.put(Do(number=-1), organization="flood", headers={"priority": b"1"}, priority=1)
        rig.put(Do(number=-2), organization="flood", priority=1)
        await eventually(lambda: ("flood", -1) in flood.ran)
        assert len(flood.ran) < 10
        flood.slow = False
        await rig.settled()
        assert flood.ran.index(("flood", -2)) > 100, "without the header nobody looked at it"


async def test_a_lane_that_is_not_filled_up_is_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleeps(self: Refill) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Refill, "run", sleeps)
    flood = Flood()
    async with Rig(options=OPTIONS) as rig:
        await flood.learned(rig)
        flood.begin(rig)
        refill = rig.worker.pipelines[WEBHOOKS.topic].refill
        assert not refill.could_go_on
        flood.slow = False
        await eventually(lambda: refill.could_go_on)
        assert refill.rounds == 0


async def test_a_limited_organization_does_not_hold_its_partition() -> None:
    async def syncs(job: Job[Sync]) -> None:
        return None

    handle(syncs, INTEGRATIONS)
    async with Rig(options={"window_records": 100}) as rig:
        for number in range(200):
            rig.put(Sync(number=number), organization="flood")
            await asyncio.sleep(0)
        for number in range(100):
            rig.put(Sync(number=number), organization=f"org-{number}")
        await eventually(lambda: len({one["organizationId"] for one in rig.events("completed")}) == 101)
        assert len(rig.events("completed")) < 130
        assert rig.worker.has_room(Partition(INTEGRATIONS.topic, 0))
