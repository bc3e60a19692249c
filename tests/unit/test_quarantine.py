"""Suspects run alone, and hold up others for a while only."""

import asyncio
from datetime import timedelta

import pytest

from streams import quarantine
from streams.quarantine import Quarantine
from tests.rig import eventually


class Ward:
    """A quarantine and who is in it."""

    def __init__(self) -> None:
        self.quarantine = Quarantine()
        self.inside: list[str] = []
        self.ends = {name: asyncio.Event() for name in ("first", "second", "suspect", "other suspect")}

    async def normal(self, name: str) -> None:
        if self.quarantine.closed:
            await self.quarantine.opened()
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
        ward.ends["first"].set()
        await eventually(lambda: ward.inside == ["suspect"])
        ward.ends["suspect"].set()
        await eventually(lambda: ward.inside and "suspect" not in ward.inside)
        for end in ward.ends.values():
            end.set()
    assert (ward.inside, ward.quarantine.running, ward.quarantine.closed) == ([], 0, False)


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
