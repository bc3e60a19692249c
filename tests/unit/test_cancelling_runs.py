"""What a cancel does to a job that runs: in the loop, in a thread, in a process."""

import asyncio
import os
import threading
import time

import pytest

from ratelimit import Done, Waiting, fence
from streams.jobs import Job
from tests.cancelling import cancel, ends, say
from tests.in_process import Input, run
from tests.rig import Do, Rig, Slow, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

ONE = {"worker_concurrency": 1}


class TestRunning:
    async def test_in_the_loop_it_is_cancelled_cleans_up_and_frees_its_slot(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            rig.put(Do(), job_id="next")
            await eventually(lambda: slow.ran == ["runs"])
            said_at = time.monotonic()
            await say(rig, "runs")
            await rig.settled()
            assert time.monotonic() - said_at < 2, "the worker hears of it by itself"
            assert slow.stopped == slow.cleaned == ["runs"]
            assert ends(rig) == [("runs", "cancelled"), ("next", "completed")]
            [event] = rig.events("cancelled")
            assert event["reason"] == "by ops"
            assert event["startedAt"] is not None
            assert event["attempt"] == 1
            assert rig.carried() == [], "no retry"
            assert rig.ledger.marks[0].end == Waiting(fence("", 1, 0) + "~")

    async def test_one_that_completes_all_the_same_has_completed(self) -> None:
        started = asyncio.Event()

        async def insists(job: Job[Do]) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return

        handle(insists)
        async with Rig() as rig:
            rig.put(Do(), job_id="runs")
            await started.wait()
            await cancel(rig, "runs")
            await rig.settled()
            assert ends(rig) == [("runs", "completed")]
            assert rig.ledger.marks[0].end == Done()

    async def test_one_that_fails_as_it_is_cancelled_is_cancelled(self) -> None:
        started = asyncio.Event()

        async def stumbles(job: Job[Do]) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("while cleaning up")

        handle(stumbles)
        async with Rig() as rig:
            rig.put(Do(), job_id="runs")
            await started.wait()
            await cancel(rig, "runs")
            await rig.settled()
            assert ends(rig) == [("runs", "cancelled")]

    async def test_a_thread_is_told_and_left_to_itself(self) -> None:
        told, go_on = threading.Event(), threading.Event()

        def hangs(job: Job[Do]) -> None:
            if job.payload.number:
                assert job.cancel is not None
                if job.cancel.wait(20):
                    told.set()
                go_on.wait(20)

        handle(hangs)
        try:
            async with Rig(options=ONE) as rig:
                rig.put(Do(number=1), job_id="runs")
                rig.put(Do(), job_id="next")
                await eventually(lambda: rig.events("started"))
                await cancel(rig, "runs")
                await rig.settled()
                assert ends(rig) == [("runs", "cancelled"), ("next", "completed")]
                assert await asyncio.to_thread(told.wait, 5)
        finally:
            go_on.set()

    async def test_a_process_is_killed(self) -> None:
        handle(run, runs_in="process")
        async with Rig(options=ONE) as rig:
            rig.put(Input(what="pid"), job_id="which")
            await rig.settled()
            pid = int(rig.events("completed")[0]["output"].partition('"number":')[2].partition(",")[0])
            rig.put(Input(what="sleep", number=60_000), job_id="runs")
            await eventually(lambda: any(one["jobId"] == "runs" for one in rig.events("started")))
            said_at = time.monotonic()
            await cancel(rig, "runs")
            await eventually(lambda: rig.events("cancelled"))
            await eventually(lambda: not _lives(pid), "the process is gone")
            assert time.monotonic() - said_at < 2
            rig.put(Input(what="succeed"), job_id="next")
            await rig.settled()
            assert ends(rig)[1:] == [("runs", "cancelled"), ("next", "completed")]

    async def test_one_that_never_ends_its_cleaning_up_harms_no_other(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="runs")
            rig.put(Do(number=2), job_id="other")
            await eventually(lambda: len(slow.ran) == 2)
            await cancel(rig, "runs")
            await eventually(lambda: slow.cleaned)
            await cancel(rig, "unknown")
            assert slow.stopped == ["runs"]
            slow.goes_on.set()
            await rig.settled()
            assert sorted(ends(rig)) == [("other", "completed"), ("runs", "cancelled")]

    async def test_hearing_more_while_it_cleans_up_does_not_cut_that_short(self) -> None:
        cleaned = asyncio.Event()
        started = asyncio.Event()

        async def tidies(job: Job[Do]) -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                cleaned.set()

        handle(tidies)
        async with Rig() as rig:
            rig.put(Do(), job_id="runs")
            await started.wait()
            await cancel(rig, "runs")
            await asyncio.sleep(0)
            await cancel(rig, "runs", "another")
            await rig.settled()
            assert cleaned.is_set()
            assert ends(rig) == [("runs", "cancelled")]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
