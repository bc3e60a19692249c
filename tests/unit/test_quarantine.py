"""Suspects run alone, and hold up others for a while only."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from ratelimit import identity
from streams import quarantine
from streams.jobs import Job
from streams.quarantine import Quarantine
from streams.queues import CRITICAL
from tests.rig import Alert, Do, Rig, Slow, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)


class Ward:
    """A quarantine and who is in it."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.inside: list[str] = []
        self.opened = asyncio.Event()
        self.quarantine.on_open.append(self.opened.set)
        self.ends = {name: asyncio.Event() for name in ("first", "second", "suspect", "other suspect")}

    async def normal(self, name: str) -> None:
        while self.quarantine.closed:
            self.opened.clear()
            await self.opened.wait()
        self.quarantine.running += 1
        try:
            self.inside.append(name)
            await self.ends[name].wait()
            self.inside.remove(name)
        finally:
            self.quarantine.leave()

    async def suspect(self, name: str = "suspect") -> None:
        async with self.quarantine.alone():
            self.inside.append(name)
            await self.ends[name].wait()
            self.inside.remove(name)


async def test_a_suspect_waits_for_others_and_others_for_it() -> None:
    ward = Ward()
    async with asyncio.TaskGroup() as group:
        group.create_task(ward.normal("first"))
        await eventually(lambda: ward.inside == ["first"])
        group.create_task(ward.suspect())
        await eventually(lambda: ward.quarantine.closed)
        group.create_task(ward.normal("second"))
        group.create_task(ward.suspect("other suspect"))
        await asyncio.sleep(0)
        assert ward.inside == ["first"]
        assert ward.quarantine.taken
        ward.ends["first"].set()
        await eventually(lambda: ward.inside == ["suspect"])
        ward.ends["suspect"].set()
        await eventually(lambda: ward.inside and "suspect" not in ward.inside)
        for end in ward.ends.values():
            end.set()
    assert (ward.inside, ward.quarantine.running, ward.quarantine.closed) == ([], 0, False)
    assert not ward.quarantine.taken


async def test_nobody_else_holds_a_lease_while_a_suspect_runs(slow: Slow) -> None:
    leased: dict[str, set[str]] = {}
    rig = Rig(options={"worker_concurrency": 3})

    async def looks(job: Job[Alert]) -> None:
        leased[job.id] = {name for name, entry in rig.ledger._ledger.items() if entry.state == "leased"}

    handle(looks, CRITICAL)
    async with rig:
        rig.put(Do(number=1), job_id="runs")
        await eventually(lambda: slow.ran == ["runs"])
        dead = replace(rig.ledger._ledger[identity("acme", "runs")], until=rig.clock() - SECOND)
        for name in ("suspect", "other-suspect"):
            rig.ledger._ledger[identity("acme", name)] = replace(dead, token="dead", crashes=1)
            rig.put(Alert(), job_id=name)
        pipeline = rig.worker.pipelines[CRITICAL.topic]
        await eventually(lambda: pipeline._stands_still)
        assert not pipeline.could_go_on
        assert not pipeline.is_stuck
        rig.put(Do(number=2), job_id="waits")
        rig.put(Alert(), job_id="waits-too")
        slow.goes_on.set()
        await rig.settled()
        await rig.settled(CRITICAL)
    assert leased["suspect"] == {identity("acme", "suspect")}
    assert leased["other-suspect"] == {identity("acme", "other-suspect")}
    assert set(slow.ran) == {"runs", "waits"}
    completed = [one["jobId"] for one in rig.events("completed")]
    assert sorted(completed) == sorted(["runs", "suspect", "other-suspect", "waits", "waits-too"])


async def test_one_that_lives_on_holds_others_up_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "ALONE_FOR", timedelta(milliseconds=20))
    ward = Ward()
    async with asyncio.TaskGroup() as group:
        group.create_task(ward.suspect())
        await eventually(lambda: ward.inside == ["suspect"])
        group.create_task(ward.normal("first"))
        await eventually(lambda: ward.inside == ["suspect", "first"])
        for end in ward.ends.values():
            end.set()


async def test_it_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quarantine, "QUIET_WITHIN", timedelta(milliseconds=20))
    ward = Ward()
    async with asyncio.TaskGroup() as group:
        group.create_task(ward.normal("first"))
        await eventually(lambda: ward.inside == ["first"])
        group.create_task(ward.suspect())
        await eventually(lambda: ward.inside == ["first", "suspect"])
        for end in ward.ends.values():
            end.set()
    assert "beside 1 others" in caplog.text


async def test_one_that_is_cancelled_while_it_waits_lets_others_in() -> None:
    ward = Ward()
    async with asyncio.TaskGroup() as group:
        group.create_task(ward.normal("first"))
        await eventually(lambda: ward.inside == ["first"])
        waiting = group.create_task(ward.suspect())
        await eventually(lambda: ward.quarantine.closed)
        waiting.cancel()
        group.create_task(ward.normal("second"))
        await eventually(lambda: ward.inside == ["first", "second"])
        for end in ward.ends.values():
            end.set()
