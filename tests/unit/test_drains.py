"""Drains: which worker hears one, and what does not count as one."""

from datetime import timedelta

import pytest

from ratelimit.control import Said
from ratelimit.model import ModelAdmission
from streams.live import Drain, LiveWorker, LiveWorkers, living
from tests.conftest import ExpectedErrors
from tests.rig import Rig

HOUR = timedelta(hours=1)
DRAIN = Drain(HOUR, "ana")


def said(to: str = "primary/worker-1", text: str | None = DRAIN.text()) -> Said:
    return Said(1, Drain.name_for(to), text, None)


async def test_the_one_that_is_meant_hears_it_once() -> None:
    live = LiveWorkers("primary", "worker-1", ModelAdmission())
    live.hear([])
    live.hear([said("document/worker-1"), said("primary/worker-10"), said(text=None)])
    assert not live.drain.done()
    live.hear([said()])
    live.hear([said(text=Drain(2 * HOUR, "bo").text())])
    assert live.drain.result() == DRAIN


async def test_what_was_said_before_it_heard_anything_was_meant_for_another_process() -> None:
    live = LiveWorkers("primary", "worker-1", ModelAdmission())
    live.hear([said()])
    assert not live.drain.done()
    live.hear([said()])
    assert live.drain.done()


async def test_what_is_not_understood_ends_nobody(expected_errors: ExpectedErrors) -> None:
    expected_errors.add("drain:primary/worker-1 is not understood")
    live = LiveWorkers("primary", "worker-1", ModelAdmission())
    live.hear([])
    live.hear([said(text="{}")])
    assert not live.drain.done()


@pytest.mark.usefixtures("slow")
async def test_a_worker_that_could_not_hear_when_it_began_is_not_ended_by_what_was_said_before() -> None:
    async with Rig() as rig:
        rig.control.down = True
        await rig.worker.hear()
        await rig.control.say({Drain.name_for("primary/worker-1"): DRAIN.text()}, HOUR)
        rig.worker.live._has_heard = False
        rig.control.down = False
        await rig.worker.hear()
        assert not rig.worker.live.drain.done()
        await rig.control.say({Drain.name_for("primary/worker-1"): DRAIN.text()}, HOUR)
        await rig.worker.hear()
        assert rig.worker.live.drain.result() == DRAIN


async def test_those_that_live_are_listed_and_asking_makes_nobody_live() -> None:
    admission = ModelAdmission()
    await admission.present("primary/web/1", HOUR)
    await admission.present("document/web", HOUR)
    assert await living(admission) == [LiveWorker("web", "document"), LiveWorker("web/1", "primary")]
    assert len(await living(admission)) == 2
