"""How a worker takes on and hands over partitions, keeps its leases and leaves."""

import asyncio
import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest

from ratelimit import Candidate, Leased, Run, fence, identity
from streams import duties, settle
from streams.jobs import Job, Result
from streams.queues import CRITICAL, WEBHOOKS
from streams.worker import Partition
from tests.rig import Alert, Do, Rig, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)


class Number(Result):
    """Which number was worked on."""

    number: int


async def works(job: Job[Do]) -> Number:
    return Number(number=job.payload.number)


class TestLeaving:
    async def test_hand_over_gives_unstarted_leases_back_and_lets_running_jobs_end(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            if job.payload.number:
                await ends.wait()

        handle(waits)
        async with Rig(options={"worker_concurrency": 1}) as rig:
            for number in range(30):
                rig.put(Do(), job_id=f"quick-{number}")
            for number in range(1, 6):
                rig.put(Do(number=number), job_id=f"slow-{number}")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: len(rig.events("completed")) == 30 and len(pipeline.runs.leased()) > 1)
            leased = [one.identity for one in pipeline.runs.leased()]
            await rig.worker.hand_over(timedelta(milliseconds=20))
            (running,) = pipeline.runs.leased()
            assert pipeline.window.records == 0
            assert rig.position() == 30
            answers = await rig.ledger.admit([Candidate(name, fence("", 1, 0)) for name in leased])
            assert [type(answer) for answer in answers] == [
                Leased if name == running.identity else Run for name in leased
            ]
            assert all(answer.crashes == 0 for answer in answers if isinstance(answer, Run))
            rig.worker.forget()
            assert rig.worker.positions() == {}
            ends.set()
            await eventually(lambda: not pipeline.runs.unfinished())
            await eventually(lambda: len(rig.events("completed")) == 31)
            assert await rig.ledger.completed([running.identity]) == [True]
            assert rig.worker.positions() == {}, "the partition belongs to somebody else now"

    async def test_hand_over_waits_for_what_ends_within_the_grace(self) -> None:
        async def takes_a_while(job: Job[Do]) -> None:
            await asyncio.sleep(0.1)

        handle(takes_a_while)
        async with Rig() as rig:
            for _ in range(5):
                rig.put(Do())
            await eventually(lambda: len(rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished()) == 5)
            await rig.worker.hand_over(10 * SECOND)
            assert rig.position() == 5
            assert len(rig.events("completed")) == 5

    async def test_after_stopping_nothing_is_taken(self) -> None:
        handle(works)
        async with Rig() as rig:
            await rig.worker.stop_admitting()
            rig.put(Do())
            await asyncio.sleep(0.02)
            assert rig.worker.pipelines[WEBHOOKS.topic].window.records == 0
            assert rig.producer.sent == []

    async def test_closing_gives_back_what_it_ended_and_not_what_it_cannot_end(self) -> None:
        release = threading.Event()

        async def in_loop(job: Job[Alert]) -> None:
            await asyncio.sleep(60)

        def in_thread(job: Job[Do]) -> None:
            release.wait(20)

        handle(in_loop, CRITICAL)
        handle(in_thread)
        rig = Rig()
        try:
            async with rig:
                rig.put(Alert(), job_id="looped")
                rig.put(Do(), job_id="threaded")
                await eventually(
                    lambda: sum(len(one.runs.unfinished()) for one in rig.worker.pipelines.values()) == 2
                )
                await eventually(lambda: rig.kinds().count("started") == 2)
        finally:
            release.set()
        asked = [Candidate(identity("acme", name), fence("", 1, 0)) for name in ("looped", "threaded")]
        given_back, kept = await rig.ledger.admit(asked)
        assert isinstance(given_back, Run)
        assert isinstance(kept, Leased)
        assert rig.producer.closed

    async def test_what_completes_when_the_worker_closes_is_settled(self) -> None:
        async def in_order(job: Job[Do]) -> Number:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return Number(number=7)

        handle(in_order)
        rig = Rig()
        async with rig:
            rig.put(Do(), job_id="job-1")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: rig.kinds() == ["started"])
            began = time.monotonic()
        assert time.monotonic() - began < duties.CANCELLED_WITHIN.total_seconds(), "a slot went on"
        assert not pipeline.runs.unfinished()
        assert rig.kinds() == ["started", "completed"]
        assert await rig.ledger.completed([identity("acme", "job-1")]) == [True]

    async def test_a_handler_that_will_not_be_cancelled_does_not_keep_the_worker(self) -> None:
        ends = asyncio.Event()

        async def stubborn(job: Job[Do]) -> None:
            while not ends.is_set():
                try:
                    await ends.wait()
                except asyncio.CancelledError:
                    continue

        handle(stubborn)
        rig = Rig()
        async with rig:
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            began = time.monotonic()
        assert time.monotonic() - began < 10
        (answer,) = await rig.ledger.admit([Candidate(identity("acme", "job-1"), fence("", 1, 0))])
        assert isinstance(answer, Leased), "it still runs"
        ends.set()
        await eventually(lambda: not rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished())

    async def test_leases_are_renewed_while_jobs_run(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        async with Rig(lease=2 * SECOND, options={"lease": 3 * SECOND}) as rig:
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            rig.clock.ahead += timedelta(milliseconds=1900)
            name = identity("acme", "job-1")

            def is_renewed() -> bool:
                entry = rig.ledger._ledger[name]
                return entry.until > rig.clock() + SECOND

            await eventually(is_renewed, "the lease is renewed", within_seconds=3)
            ends.set()
            await rig.settled()


class TestRoom:
    async def test_a_full_window_or_a_long_span_refuses_more(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        options = {"worker_concurrency": 1, "window_records": 3, "window_span": 6}
        async with Rig(options=options) as rig:
            here, there = Partition(WEBHOOKS.topic, 0), Partition(WEBHOOKS.topic, 1)
            assert rig.worker.has_room(here)
            assert not rig.worker.has_room(Partition(WEBHOOKS.topic, 7)), "nobody assigned it"
            rig.put(Do())
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            for _ in range(3):
                rig.put(Do())
            assert not rig.worker.has_room(here)
            assert not rig.worker.has_room(there), "the window is the queue's"
            assert rig.worker.has_room(Partition(CRITICAL.topic, 0)), "and no other queue's"
            ends.set()
            await rig.settled()
            assert rig.worker.has_room(here)

    async def test_nothing_more_is_read_while_too_much_waits_for_the_broker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nothing(job: Job[Do]) -> None:
            return None

        monkeypatch.setattr(settle, "UNSETTLED_BOUND", 3)
        handle(nothing)
        async with Rig() as rig:
            rig.producer.open.clear()
            for _ in range(2):
                rig.put(Do())
            await eventually(lambda: len(rig.worker.settlement.leased()) == 2)
            here = Partition(WEBHOOKS.topic, 0)
            assert rig.worker.has_room(here)
            rig.put(Do())
            await eventually(lambda: len(rig.worker.settlement.leased()) == 3)
            assert not rig.worker.has_room(here)
            rig.producer.open.set()
            await rig.settled()
            assert rig.worker.has_room(here)
