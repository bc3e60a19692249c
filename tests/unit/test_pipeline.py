"""From record to attempt: who runs, where, and who waits for what."""

import asyncio
import threading
import time
from datetime import timedelta

import pytest

from ratelimit import Candidate, Run, fence, identity
from streams.jobs import Job, Result
from streams.queues import EMAILS, INTEGRATIONS, WEBHOOKS
from tests.conftest import ExpectedErrors
from tests.in_process import Input, run
from tests.rig import Do, Mail, Rig, Sync, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)


class Number(Result):
    """Which number was worked on."""

    number: int


async def works(job: Job[Do]) -> Number:
    return Number(number=job.payload.number)


class TestWhereItRuns:
    async def test_a_timeout_in_the_loop_frees_the_slot(self) -> None:
        async def sleeps(job: Job[Do]) -> None:
            if job.payload.number == 0:
                await asyncio.sleep(60)

        handle(sleeps, timeout=timedelta(milliseconds=20))
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.put(Do(), job_id="hangs")
            rig.put(Do(number=1), job_id="next")
            await rig.settled()
            assert [(one["jobId"], one["kind"]) for one in rig.events() if one["kind"] != "started"] == [
                ("hangs", "retried"), ("next", "completed"),
            ]  # fmt: skip
            assert rig.events("retried")[0]["error"]["kind"] == "TimedOut"

    async def test_a_timeout_in_a_thread_abandons_it_and_frees_the_slot(self) -> None:
        told = threading.Event()

        def hangs(job: Job[Do]) -> None:
            assert job.cancel is not None
            if job.payload.number == 0 and job.cancel.wait(20):
                told.set()

        handle(hangs, timeout=timedelta(milliseconds=50))
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.put(Do())
            rig.put(Do(number=1))
            await rig.settled()
            assert [one for one in rig.kinds() if one != "started"] == ["retried", "completed"]
            assert await asyncio.to_thread(told.wait, 5)

    async def test_a_process_that_exits_or_hangs_is_a_retry(self, expected_errors: ExpectedErrors) -> None:
        expected_errors.add("failed on attempt 1 with ProcessExpired")
        handle(run, runs_in="process", timeout=timedelta(seconds=3))
        async with Rig() as rig:
            rig.put(Input(what="end", number=70), job_id="exits")
            rig.put(Input(what="sleep", number=60_000), job_id="hangs")
            rig.put(Input(what="succeed", number=1), job_id="works")
            await rig.settled()
            ended = {one["jobId"]: one for one in rig.events() if one["kind"] != "started"}
            assert ended["exits"]["error"]["message"] == "the handler's process ended with exit code 70"
            assert ended["hangs"]["error"]["kind"] == "TimedOut"
            assert ended["works"]["kind"] == "completed"
            assert ended["works"]["memoryBytes"] > 1_000_000
            assert ended["works"]["cpuTimeMs"] is not None

    async def test_a_handler_that_cancels_itself_leaves_its_slot_to_the_next(
        self, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("CancelledError")

        async def cancels(job: Job[Do]) -> None:
            if job.payload.number == 0:
                raise asyncio.CancelledError

        handle(cancels)
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.put(Do())
            rig.put(Do(number=1))
            await rig.settled()
            assert rig.kinds() == ["retried", "completed"]

    async def test_no_more_run_at_once_than_there_are_slots(self) -> None:
        running = most = 0

        async def counts(job: Job[Do]) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

        handle(counts)
        async with Rig(options={"worker_concurrency": 4}) as rig:
            for number in range(300):
                rig.put(Do(number=number), organization=f"org-{number % 7}")
            await rig.settled()
            assert most == 4
            assert len(rig.events("completed")) == 300


class TestAdmission:
    async def test_a_redelivered_duplicate_is_dropped_and_its_offset_settled(self) -> None:
        runs: list[str] = []

        async def counts(job: Job[Do]) -> None:
            runs.append(job.id)

        handle(counts)
        async with Rig() as rig:
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            rig.put(Do(), job_id="job-1")
            rig.put(Do(), job_id="job-2", idempotencyKey="job-1")
            rig.put(Do(), job_id="job-1", organization="globex")
            await rig.settled()
            assert runs == ["job-1", "job-1"]
            assert [one["organizationId"] for one in rig.events("completed")] == ["acme", "globex"]

    async def test_a_leased_delivery_waits_and_runs_when_the_lease_ran_out(self) -> None:
        handle(works)
        async with Rig(lease=SECOND / 4) as rig:
            (lost,) = await rig.ledger.admit([Candidate(identity("acme", "job-1"), fence("", 1, 0))])
            assert isinstance(lost, Run)
            leased_at = time.monotonic()
            rig.put(Do(), job_id="job-1")
            rig.put(Do(), job_id="other")
            await eventually(lambda: [one["jobId"] for one in rig.events()] == ["other"])
            await eventually(lambda: rig.position() == 0, "what waits is not passed over")
            await rig.settled()
            assert time.monotonic() - leased_at >= 0.24
            assert [one["jobId"] for one in rig.events()] == ["other", "job-1"]

    async def test_a_limit_of_the_queue_holds_the_whole_queue(self) -> None:
        async def sends(job: Job[Mail]) -> None:
            return None

        handle(sends, EMAILS)
        async with Rig() as rig:
            began = rig.clock()
            rig.ledger._clock = lambda: began
            for number in range(100):
                rig.put(Mail(number=number))
            await rig.settled(EMAILS)
            asked = rig.ledger.asked
            rig.put(Mail(), job_id="one-too-many")
            rig.put(Mail(), organization="globex", job_id="of-another")
            await eventually(lambda: rig.ledger.asked > asked)
            assert rig.worker.pipelines[EMAILS.topic].window.records == 2
            rig.ledger._clock = rig.clock
            await rig.settled(EMAILS)
            assert rig.ledger.asked - asked <= 6, "it asks again when it may, and not all the time"
            started = [one["startedAt"] for one in rig.events("completed")[-2:]]
            assert started[0] - began >= timedelta(milliseconds=600)
            assert started[1] - began >= timedelta(milliseconds=1200)

    async def test_a_limit_of_an_organization_holds_that_one_only(self) -> None:
        async def syncs(job: Job[Sync]) -> None:
            return None

        handle(syncs, INTEGRATIONS)
        async with Rig() as rig:
            began = rig.clock()
            rig.ledger._clock = lambda: began
            for number in range(15):
                rig.put(Sync(number=number), organization="flood")
            await eventually(lambda: len(rig.events("completed")) == 10)
            rig.put(Sync(), organization="quiet")
            await eventually(lambda: len(rig.events("completed")) == 11)
            assert rig.events("completed")[-1]["organizationId"] == "quiet"
            rig.ledger._clock = rig.clock
            await rig.settled(INTEGRATIONS)
            *_, last = rig.events("completed")
            assert last["startedAt"] - began >= timedelta(milliseconds=500)

    async def test_a_worker_without_a_free_slot_sleeps_though_something_is_due(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.put(Do())
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            soon = rig.clock() + timedelta(milliseconds=5)
            rig.put(Do(), headers={"not-before": b"%d" % (soon.timestamp() * 1000)})
            await eventually(lambda: rig.clock() > soon)
            before, began = time.process_time(), time.monotonic()
            await asyncio.sleep(0.2)
            assert time.process_time() - before < 0.5 * (time.monotonic() - began), "the loop spins"
            ends.set()
            await rig.settled()

    async def test_a_job_that_outlived_five_workers_is_dead(self) -> None:
        async def never(job: Job[Do]) -> None:
            raise AssertionError("it must not run again")

        handle(never)
        async with Rig(lease=SECOND) as rig:
            for _ in range(5):
                answer = await rig.ledger.admit([Candidate(identity("acme", "job-1"), fence("", 1, 0))])
                assert isinstance(answer[0], Run)
                rig.clock.ahead += 2 * SECOND
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            assert rig.kinds() == ["dead"]
            (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
            assert headers_of(letter)["reason"] == "5 workers ended while they ran it"

    async def test_a_due_time_ahead_waits_in_a_retry_topic_or_in_the_window(self) -> None:
        handle(works)
        async with Rig() as rig:
            minutes = rig.clock() + timedelta(minutes=11)
            rig.put(Do(), headers={"not-before": b"%d" % (minutes.timestamp() * 1000)})
            await rig.settled()
            (carried,) = rig.carried()
            assert carried.topic == "jobs.retry.10m"
            assert headers_of(carried)["attempt"] == "1"
            soon = rig.clock() + timedelta(milliseconds=300)
            rig.put(Do(), headers={"not-before": b"%d" % (soon.timestamp() * 1000)})
            await rig.settled()
            (event,) = rig.events()
            assert event["startedAt"] >= soon - timedelta(milliseconds=1)
