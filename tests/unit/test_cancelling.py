"""What a cancel does to jobs that do not run: those that wait, that come later, that are replayed."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from uuid6 import uuid7

from ratelimit import Candidate, Mark, Run, Waiting, fence, identity
from streams.errors import Transient
from streams.jobs import Job
from streams.queues import CRITICAL, EMAILS, WEBHOOKS
from tests.cancelling import DAY, cancel, ends, say
from tests.conftest import ExpectedErrors
from tests.in_process import Input, run
from tests.rig import Alert, Do, Mail, Rig, Slow, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)
ONE = {"worker_concurrency": 1}


class TestWaiting:
    async def test_behind_others_it_is_settled_at_once_and_never_runs(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            for number in range(300):
                rig.put(Do(), job_id=f"waits-{number}")
            await cancel(rig, *(f"waits-{number}" for number in range(300) if number != 100))
            await eventually(lambda: len(rig.events("cancelled")) == 299)
            assert slow.ran == ["runs"]
            assert {event["startedAt"] for event in rig.events("cancelled")} == {None}
            slow.goes_on.set()
            await rig.settled()
            assert slow.ran == ["runs", "waits-100"]
            assert {headers_of(one)["ce_id"] for one in rig.carried()} <= {"runs"}, (
                "but for the watchdog copy"
            )

    async def test_admitted_and_without_a_process_it_never_gets_one(self) -> None:
        handle(run, runs_in="process")
        async with Rig(options={"worker_concurrency": 3}) as rig:
            rig.put(Input(what="sleep", number=700), job_id="runs")
            rig.put(Input(what="succeed"), job_id="waits")
            rig.put(Input(what="succeed"), job_id="waits-too")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: len(pipeline.runs.leased()) == 3 and rig.events("started"))
            await cancel(rig, "waits")
            await eventually(lambda: rig.events("cancelled"))
            assert rig.events("cancelled")[0]["startedAt"] is None
            await rig.settled()
            assert ends(rig) == [("waits", "cancelled"), ("runs", "completed"), ("waits-too", "completed")]

    async def test_one_that_comes_later_never_runs(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "later")
            rig.put(Do(), job_id="later")
            rig.put(Do(), job_id="other")
            await rig.settled()
            assert slow.ran == ["other"]
            assert sorted(ends(rig)) == [("later", "cancelled"), ("other", "completed")]

    async def test_of_another_organization_the_same_id_runs(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "same", organization="globex")
            rig.put(Do(), job_id="same")
            await rig.settled()
            assert slow.ran == ["same"]

    async def test_its_retry_never_runs(self) -> None:
        runs = 0

        async def fails(job: Job[Do]) -> None:
            nonlocal runs
            runs += 1
            raise Transient("no")

        handle(fails)
        async with Rig() as rig:
            rig.put(Do(), job_id="fails", maxAttempts=3)
            await rig.settled()
            await cancel(rig, "fails")
            rig.put_again(rig.carried()[0])
            await rig.settled()
            assert runs == 1
            [event] = rig.events("cancelled")
            assert event["attempt"] == 2
            assert len(rig.carried()) == 1

    async def test_one_that_is_not_due_does_not_wait_any_longer(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "waits")
            due = b"%d" % int((rig.clock() + DAY).timestamp() * 1000)
            rig.put(Do(), job_id="waits", headers={"not-before": due})
            await rig.settled()
            assert ends(rig) == [("waits", "cancelled")]
            assert rig.carried() == []

    async def test_it_neither_waits_for_limits_nor_takes_of_them(self) -> None:
        ran: list[str] = []

        async def sends(job: Job[Mail]) -> None:
            ran.append(job.id)

        handle(sends, EMAILS)
        async with Rig() as rig:
            now = rig.clock()
            rig.ledger._clock = lambda: (
                now
            )  # the limit lets nothing more through, however slow this machine is
            for number in range(150):
                rig.put(Mail(), job_id=f"mail-{number}")
            await eventually(lambda: len(ran) == 100)
            await cancel(rig, *(f"mail-{number}" for number in range(140)))
            await eventually(lambda: len(rig.events("cancelled")) == 40)
            await cancel(rig, *(f"late-{number}" for number in range(20)))
            for number in range(20):
                rig.put(Mail(), job_id=f"late-{number}")
            await eventually(lambda: len(rig.events("cancelled")) == 60)
            assert len(ran) == 100

    async def test_a_cancel_that_comes_while_admission_is_asked_is_not_missed(self, slow: Slow) -> None:
        async with Rig() as rig:
            await say(rig, "asked")
            admit = rig.ledger.admit

            async def meanwhile(candidates: list[Candidate]) -> object:
                answers = await admit(candidates)
                await rig.worker.hear()
                return answers

            rig.ledger.admit = meanwhile  # type: ignore[assignment,method-assign]
            rig.put(Do(), job_id="asked")
            await rig.settled()
            assert slow.ran == []
            assert ends(rig) == [("asked", "cancelled")]

    async def test_one_whose_lease_was_lost_is_given_up_instead_of_run_again(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            name = identity("acme", "runs")
            other = rig.ledger._ledger[name] = replace(rig.ledger._ledger[name], token="another worker's")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            [delivery] = pipeline.runs.leased()
            await say(rig, "runs")
            rig.worker.operators.cancellations.hear(await rig.worker._listener.news(), rig.clock())  # type: ignore[union-attr]
            assert pipeline.runs.lose(delivery)
            await eventually(lambda: slow.cleaned)
            await rig.ledger.settle([Mark(name, other.token, Waiting(other.fence))])
            await rig.settled()
            assert slow.ran == ["runs"]
            assert ends(rig) == [("runs", "cancelled")]

    async def test_one_that_runs_elsewhere_is_left_to_that_worker(self, slow: Slow) -> None:
        async with Rig() as rig:
            [other] = await rig.ledger.admit([Candidate(identity("acme", "elsewhere"), fence("", 1, 0))])
            assert isinstance(other, Run)
            await cancel(rig, "elsewhere")
            rig.put(Do(), job_id="elsewhere")
            await eventually(lambda: rig.ledger.asked >= 3, "it asks again")
            assert rig.kinds() == []
            await rig.ledger.settle([Mark("acme:elsewhere", other.token, Waiting(fence("", 1, 0) + "~"))])
            await rig.settled()
            assert rig.kinds() == []
            assert slow.ran == []

    async def test_with_its_partition_it_goes(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.ledger.down = True
            await cancel(rig, "waits")
            rig.put(Do(), job_id="waits")
            await rig.worker.hand_over(SECOND)
            rig.worker.forget()
            rig.ledger.down = False
            rig.ledger.asked = 0
            await asyncio.sleep(1.2)
            assert rig.ledger.asked == 0
            assert rig.kinds() == []


class TestReplays:
    async def test_a_later_replay_runs(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "job-1")
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            rig.put(Do(), job_id="job-1", headers={"replay-id": str(uuid7()).encode()})
            await rig.settled()
            assert slow.ran == ["job-1"]
            assert ends(rig) == [("job-1", "cancelled"), ("job-1", "completed")]

    async def test_an_earlier_replay_does_not(self, slow: Slow) -> None:
        async with Rig() as rig:
            replay = str(uuid7()).encode()
            await cancel(rig, "job-1")
            rig.put(Do(), job_id="job-1", headers={"replay-id": replay})
            await rig.settled()
            assert slow.ran == []


class TestTold:
    async def test_what_was_told_is_not_told_again_but_marked(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "told", told="")
            rig.put(Do(), job_id="told")
            await rig.settled()
            assert rig.kinds() == []
            assert [mark.end for mark in rig.ledger.marks] == [Waiting(fence("", 1, 0) + "~")]

    async def test_what_was_told_of_another_replay_is_told_of_this(self, slow: Slow) -> None:
        async with Rig() as rig:
            replay = str(uuid7()).encode()
            await cancel(rig, "told", told="")
            rig.put(Do(), job_id="told", headers={"replay-id": replay})
            await rig.settled()
            assert [event["replayId"] for event in rig.events("cancelled")] == [replay.decode()]

    async def test_a_run_is_told_in_any_case(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran)
            await cancel(rig, "runs", told="")
            await rig.settled()
            assert ends(rig) == [("runs", "cancelled")]


class TestRedisDown:
    async def test_what_is_known_holds_and_the_rest_is_heard_when_it_is_back(
        self, slow: Slow, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Rig() as rig:
            await cancel(rig, "known")
            rig.control.down = True
            await say(rig, "said-meanwhile")
            for _ in range(3):
                await rig.worker.hear()
            assert len([one for one in caplog.records if "operators are not heard" in one.message]) == 1
            rig.put(Do(), job_id="known")
            rig.put(Do(number=1), job_id="said-meanwhile")
            await eventually(lambda: rig.events("cancelled"))
            assert slow.ran == ["said-meanwhile"]
            rig.control.down = False
            await rig.settled()
            assert sorted(ends(rig)) == [("known", "cancelled"), ("said-meanwhile", "cancelled")]
            rig.control.down = True
            await rig.worker.hear()
            assert len([one for one in caplog.records if "operators are not heard" in one.message]) == 2

    async def test_a_queue_that_goes_on_without_it_gives_up_without_it(self) -> None:
        ran: list[str] = []

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.id)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            await cancel(rig, "cancelled")
            rig.ledger.down = True
            rig.put(Alert(), job_id="cancelled")
            await rig.settled(CRITICAL)
            assert ran == []
            assert ends(rig) == [("cancelled", "cancelled")]

    async def test_a_queue_that_waits_for_it_settles_when_it_is_back(self, slow: Slow) -> None:
        async with Rig() as rig:
            await cancel(rig, "cancelled")
            rig.ledger.down = True
            rig.put(Do(), job_id="cancelled")
            await asyncio.sleep(0.05)
            assert rig.kinds() == []
            assert rig.position() is None
            rig.ledger.down = False
            await rig.settled()
            assert ends(rig) == [("cancelled", "cancelled")]
            assert slow.ran == []


async def test_what_is_not_understood_stops_nobody(slow: Slow, expected_errors: ExpectedErrors) -> None:
    expected_errors.add("cancel:acme:odd is not understood")
    async with Rig() as rig:
        await rig.control.say({"cancel:acme:odd": "{}", "odd:emails": "x"}, DAY)
        await cancel(rig, "job-1")
        rig.put(Do(), job_id="odd")
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        assert slow.ran == ["odd"]
