"""Jobs that outlive something: their partition, their lease, or the patience of those behind them."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ratelimit import Answer, Candidate, Done, Lease, Mark, Released, Run, fence, identity
from streams.delivery import milliseconds
from streams.errors import Transient
from streams.jobs import Job
from streams.pipeline import Pipeline
from streams.queues import CRITICAL, WEBHOOKS
from streams.runs import WATCHED_FROM
from streams.worker import Partition
from tests.in_process import Input, run
from tests.rig import Alert, Do, Read, Rig, Slow, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)
HERE = Partition(WEBHOOKS.topic, 0)
OPTIONS = {"lease": 3 * SECOND}


def stand_still(rig: Rig) -> None:
    """Let the worker be stopped behind the next answer of admission, and go on after its leases have run out."""
    pipeline, admit = pipeline_of(rig), rig.ledger.admit
    lease, pipeline._lease = pipeline._lease, -SECOND

    async def too_late(candidates: Sequence[Candidate]) -> list[Answer]:
        answers = await admit(candidates)
        pipeline._lease = lease
        return answers

    rig.ledger.admit = too_late  # type: ignore[method-assign]


def late(ask: Callable[[Any], Coroutine[Any, Any, Any]], answer: asyncio.Event) -> Any:
    """Return a question to the ledger that is carried out at once, and answered when the event is set."""

    async def asked(what: Any) -> Any:
        answers = await ask(what)
        await answer.wait()
        return answers

    return asked


def pipeline_of(rig: Rig) -> Pipeline:
    return rig.worker.pipelines[WEBHOOKS.topic]


async def parted(rig: Rig, slow: Slow) -> Read:
    """Let a job outlive its assignment, and return its record."""
    queue, value, headers = rig.record(Do(number=1), job_id="job-1")
    record = Read(queue.topic, 0, 0, b"acme", value, list(headers.items()))
    rig.worker.take(HERE, [record])
    await eventually(lambda: slow.ran)
    await rig.worker.hand_over(timedelta(milliseconds=20))
    rig.worker.forget()
    return record


def again(rig: Rig, record: Read) -> None:
    """Give the partition back, and let the record be read again."""
    rig.worker.assign([HERE])
    rig.worker.take(HERE, [record])
    rig._next[HERE] = 1


async def take_over(rig: Rig, job_id: str) -> None:
    """Let another worker hold the lease of a job."""
    name = identity("acme", job_id)
    rig.ledger._ledger[name] = replace(rig.ledger._ledger[name], token="another worker's")


class TestAdoption:
    async def test_a_job_that_runs_on_is_found_again_with_its_partition(self, slow: Slow) -> None:
        async with Rig() as rig:
            record = await parted(rig, slow)
            again(rig, record)
            assert pipeline_of(rig).window.records == 0, "it is not read again"
            rig.put(Do())
            await eventually(lambda: len(slow.ran) == 2)
            assert rig.position() == 0, "its record is not settled"
            slow.goes_on.set()
            await rig.settled()
            assert sorted(rig.kinds()) == ["completed", "completed"]
            assert slow.ran.count("job-1") == 1

    async def test_one_that_ended_in_the_meantime_is_read_and_dropped(self, slow: Slow) -> None:
        async with Rig() as rig:
            record = await parted(rig, slow)
            slow.goes_on.set()
            await eventually(lambda: rig.events("completed"))
            again(rig, record)
            await rig.settled()
            assert slow.ran == ["job-1"]

    async def test_answers_that_come_after_the_partition_left_begin_nothing(self, slow: Slow) -> None:
        async with Rig() as rig:
            answer = asyncio.Event()
            rig.ledger.admit = late(rig.ledger.admit, answer)  # type: ignore[method-assign]
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.ledger.asked)
            await rig.worker.hand_over(SECOND)
            answer.set()
            name = identity("acme", "job-1")
            await eventually(lambda: rig.ledger._ledger[name].state == "waiting", "the lease is given back")
            assert slow.ran == []
            assert rig.worker.positions() == {}, "and its record is left to whoever comes next"


class TestWatchdogCopies:
    async def test_a_job_that_holds_many_back_leaves_a_copy_and_lets_the_position_go(
        self, slow: Slow
    ) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="slow")
            for _ in range(WATCHED_FROM):
                rig.put(Do())
            await rig.settled()
            (copy,) = rig.carried()
            assert copy.topic == "jobs.retry.30s", "the lease is 30 s"
            assert headers_of(copy)["copy"] == "1"
            assert slow.ran.count("slow") == 1
            assert len(rig.events("completed")) == WATCHED_FROM

            # It comes due while the job runs: it waits again, and holds nothing back.
            rig.clock.ahead += 31 * SECOND
            await rig.ledger.renew([Lease(identity("acme", "slow"), pipeline_of(rig).runs.leased()[0].token)])
            rig.put_again(copy)
            await rig.settled()
            (_, second) = rig.carried()
            assert second.topic == "jobs.retry.5s"
            assert headers_of(second)["copy"] == "1"

            # It comes due when the job has ended: it is dropped.
            slow.goes_on.set()
            await eventually(lambda: len(rig.events("completed")) == WATCHED_FROM + 1)
            rig.clock.ahead += 31 * SECOND
            rig.put_again(second)
            await rig.settled()
            assert slow.ran.count("slow") == 1
            assert len(rig.carried()) == 2

    async def test_the_copy_of_a_worker_that_died_runs(self, slow: Slow) -> None:
        async with Rig() as first:
            first.put(Do(number=1), job_id="slow")
            for _ in range(WATCHED_FROM):
                first.put(Do())
            await first.settled()
            (copy,) = first.carried()
            ledger = first.ledger
            slow.goes_on.set()
            async with Rig() as second:
                second.worker.pipelines[WEBHOOKS.topic]._admission = ledger
                ledger._clock = second.clock
                # As if the first had died at that moment.
                entry = ledger._ledger[identity("acme", "slow")]
                ledger._ledger[identity("acme", "slow")] = replace(entry, state="leased", token="the dead")
                second.clock.ahead += 31 * SECOND
                second.put_again(copy)
                await eventually(lambda: slow.ran.count("slow") == 2)

    async def test_it_waits_for_the_ledger_where_others_go_on_without(self) -> None:
        ran: list[str] = []

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.id)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            rig.ledger.down = True
            rig.put(Alert(), job_id="begun", headers={"copy": b"1"})
            rig.put(Alert(), job_id="new")
            await eventually(lambda: "new" in ran)
            rig.ledger.down = False
            await rig.settled(CRITICAL)
            assert ran == ["new", "begun"], "the ledger says that its worker died"

    async def test_it_is_one_as_long_as_it_has_not_run(self) -> None:
        async def fails(job: Job[Do]) -> None:
            raise Transient("down for the test")

        handle(fails)
        async with Rig() as rig:
            later = b"%d" % milliseconds(rig.clock() + 60 * SECOND)
            rig.put(Do(), headers={"copy": b"1", "not-before": later})
            await rig.settled()
            rig.put(Do(), headers={"copy": b"1"})
            await rig.settled()
            not_due, retry = map(headers_of, rig.carried())
            assert (not_due["reason"], not_due["copy"]) == ("not due yet", "1")
            assert (retry["attempt"], retry.get("copy")) == ("2", None)

    async def test_quick_jobs_and_those_that_hold_few_back_leave_none(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="slow")
            for _ in range(WATCHED_FROM - 1):
                rig.put(Do())
            await eventually(lambda: len(rig.events("completed")) == WATCHED_FROM - 1)
            await eventually(lambda: rig.events("started"))
            assert rig.carried() == []
            slow.goes_on.set()
            await rig.settled()


class TestLostLeases:
    async def test_a_run_in_the_loop_is_cancelled_and_says_nothing(self, slow: Slow) -> None:
        async with Rig(options=OPTIONS) as rig:
            rig.put(Do(number=1), job_id="job-1")
            await eventually(lambda: slow.ran)
            await take_over(rig, "job-1")
            await eventually(lambda: slow.stopped, "the run is cancelled", within_seconds=5)
            assert "completed" not in rig.kinds()
            assert rig.position() is None
            # Its record is settled once the other worker is done.
            await rig.ledger.settle([Mark(identity("acme", "job-1"), "another worker's", Done())])
            await rig.settled()
            assert [kind for kind in rig.kinds() if kind != "started"] == []
            assert slow.ran == ["job-1"]

    async def test_a_thread_is_told(self) -> None:
        told = threading.Event()

        def runs(job: Job[Do]) -> None:
            assert job.cancel is not None
            if job.cancel.wait(10):
                told.set()

        handle(runs)
        async with Rig(options=OPTIONS) as rig:
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.events("started"))
            await take_over(rig, "job-1")
            assert await asyncio.to_thread(told.wait, 5)
            await eventually(lambda: not pipeline_of(rig).runs.unfinished())
            assert rig.kinds() == ["started"]

    async def test_a_process_is_killed(self) -> None:
        handle(run, runs_in="process")
        async with Rig(options=OPTIONS) as rig:
            rig.put(Input(what="sleep", number=60_000), job_id="job-1")
            await eventually(lambda: rig.events("started"), within_seconds=20)
            await take_over(rig, "job-1")
            await eventually(lambda: not pipeline_of(rig).runs.unfinished(), within_seconds=10)
            assert rig.kinds() == ["started"]

    async def test_an_end_that_comes_after_the_lease_is_verified_before_it_is_told(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="job-1")
            rig.put(Do(number=2), job_id="job-2")
            await eventually(lambda: len(slow.ran) == 2)
            for one in pipeline_of(rig).runs.leased():
                # As after a stop of the whole process for longer than a lease.
                one.leased_until = time.monotonic() - 1
            await take_over(rig, "job-1")
            slow.goes_on.set()
            await eventually(lambda: rig.events("completed"))
            assert [one["jobId"] for one in rig.events("completed")] == ["job-2"]
            await rig.ledger.settle([Mark(identity("acme", "job-1"), "another worker's", Done())])
            await rig.settled()
            assert [one["jobId"] for one in rig.events("completed")] == ["job-2"]

    async def test_what_was_admitted_before_a_standstill_is_asked_for_again(self, slow: Slow) -> None:
        async with Rig(options={"worker_concurrency": 1}) as rig:
            stand_still(rig)
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            assert slow.ran == ["job-1"]
            assert rig.ledger.asked == 2

    async def test_a_lease_is_given_back_while_the_broker_is_away(self, slow: Slow) -> None:
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.producer.open.clear()
            rig.put(Do(), job_id="ended")
            await eventually(lambda: rig.worker.settlement.leased())
            stand_still(rig)
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.ledger.marks)
            assert [(one.identity, one.end) for one in rig.ledger.marks] == [
                (identity("acme", "job-1"), Released())
            ]
            rig.producer.open.set()
            await rig.settled()
            assert slow.ran == ["ended", "job-1"]

    async def test_what_is_admitted_anew_while_its_lease_is_given_back_keeps_the_new_one(
        self, slow: Slow
    ) -> None:
        async with Rig(options={**OPTIONS, "worker_concurrency": 2}) as rig:
            answer = asyncio.Event()
            rig.ledger.settle = late(rig.ledger.settle, answer)  # type: ignore[method-assign]
            stand_still(rig)
            rig.put(Do(number=1), job_id="job-1")
            # The next renewal finds that the lease is gone, and the job asks for another one.
            await eventually(lambda: slow.ran)
            (running,) = pipeline_of(rig).runs.all()
            answer.set()
            await eventually(
                lambda: pipeline_of(rig)._quarantine.running == 1, "what was given back is forgotten"
            )
            assert pipeline_of(rig).runs.all() == [running]
            assert running.delivery.token
            slow.goes_on.set()
            await rig.settled()
            assert slow.ran == ["job-1"]
            assert rig.kinds().count("completed") == 1

    async def test_what_has_ended_keeps_its_lease_until_the_ledger_knows(self, slow: Slow) -> None:
        async with Rig(lease=2 * SECOND, options=OPTIONS) as rig:
            rig.producer.open.clear()
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.worker.settlement.leased())
            rig.clock.ahead += timedelta(milliseconds=1900)
            name = identity("acme", "job-1")

            def is_renewed() -> bool:
                return rig.ledger._ledger[name].until > rig.clock() + SECOND

            await eventually(is_renewed, "the lease is renewed while the broker is away", within_seconds=3)
            rig.producer.open.set()
            await rig.settled()


async def test_a_delivery_that_finds_its_job_running_elsewhere_goes_aside_in_the_end(slow: Slow) -> None:
    async with Rig() as rig:
        (other,) = await rig.ledger.admit([Candidate(identity("acme", "job-1"), fence("", 1, 0))])
        assert isinstance(other, Run)
        rig.put(Do(), job_id="job-1")
        await eventually(rig.carried, "it waits in a retry topic")
        await rig.settled()
        assert slow.ran == []


class TestTheLedgerComesBack:
    """On a queue that goes on without it."""

    async def test_what_runs_since_it_was_away_gets_the_lease_of_its_like(self) -> None:
        ran: list[int] = []
        ends = asyncio.Event()

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.payload.number)
            await ends.wait()

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            rig.ledger.down = True
            rig.put(Alert(number=1), job_id="same")
            await eventually(lambda: ran == [1])
            rig.ledger.down = False
            rig.put(Alert(number=2), job_id="same")
            await eventually(lambda: rig.worker.pipelines[CRITICAL.topic].runs.leased())
            ends.set()
            await rig.settled(CRITICAL)
            assert ran == [1]
            assert [one["kind"] for one in rig.events()] == ["completed"]
            assert await rig.ledger.completed([identity("acme", "same")]) == [True]

    async def test_what_ran_while_it_was_away_does_not_run_again(self) -> None:
        ran: list[int] = []

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.payload.number)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            rig.ledger.down = True
            rig.put(Alert(number=1), job_id="same")
            await rig.settled(CRITICAL)
            rig.ledger.down = False
            for _ in range(2):
                rig.put(Alert(number=2), job_id="same")
                await rig.settled(CRITICAL)
            assert ran == [1]
            retry = {"attempt": b"2"}
            rig.put(Alert(number=3), job_id="same", headers=retry)
            await rig.settled(CRITICAL)
            assert ran == [1, 3], "a later attempt is none of it"
