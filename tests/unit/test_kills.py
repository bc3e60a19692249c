"""Kill switches: what they match and has not begun is a dead letter, and nothing else is."""

import asyncio
from datetime import timedelta

import pytest
from uuid6 import uuid7

from ratelimit import Candidate, Mark, Run, Waiting, fence, identity
from ratelimit.control import Said
from streams.errors import Transient
from streams.jobs import Job
from streams.kills import Kill, Kills
from streams.queues import CRITICAL, WEBHOOKS
from tests.cancelling import cancel, ends
from tests.conftest import ExpectedErrors
from tests.deliveries import NOON, delivery
from tests.in_process import Input, run
from tests.rig import Alert, Do, Rig, Slow, eventually, handle, headers_of
from tests.saying import kill, lift, said

ALL = 'type == "test.do"'


def switch(kill_id: str = "1", selector: str = 'organization == "acme"') -> Kill:
    return Kill.of(kill_id, selector, since=NOON, by="ana", reason="why")


class TestKnown:
    def test_it_is_said_and_understood_and_lifted(self) -> None:
        kills = Kills()
        assert kills.hear([said(switch())])
        assert kills.known == {"kill:1": switch()}
        assert kills.of(delivery("acme")) == switch()
        assert kills.of(delivery("globex")) is None
        assert not kills.hear([Said(2, "pause:organization=acme", "{}", None)])
        assert kills.hear([Said(2, "kill:1", None, None)])
        assert kills.of(delivery("acme")) is None

    def test_what_is_not_understood_kills_nothing(self, expected_errors: ExpectedErrors) -> None:
        expected_errors.add("is not understood, so it kills nothing")
        odd = switch().text().replace("organization", "planet")
        kills = Kills()
        kills.hear([Said(1, "kill:1", "{}", None), Said(2, "kill:2", odd, None), said(switch("3"))])
        assert list(kills.known) == ["kill:3"]


@pytest.mark.usefixtures("no_handlers")
class TestWorker:
    async def test_what_matches_and_comes_later_is_dead_and_the_rest_runs(self, slow: Slow) -> None:
        async with Rig() as rig:
            await kill(rig, "payload.number == 0 and payload.data == 'YQ=='")
            offset = rig.put(Do(data=b"a"), job_id="matches")
            rig.put(Do(data=b"b"), job_id="other")
            await rig.settled()
            assert slow.ran == ["other"]
            assert sorted(ends(rig)) == [("matches", "dead"), ("other", "completed")]
            [event] = rig.events("dead")
            assert (event["reason"], event["error"]["kind"]) == ("killed: a test", "Killed")
            assert (event["startedAt"], event["attempt"]) == (None, 1)
            [letter] = rig.written(WEBHOOKS.dead_letter_topic)
            assert headers_of(letter)["reason"] == "killed: a test"
            assert headers_of(letter)["origin"] == f"{WEBHOOKS.topic}/0/{offset}"

    async def test_what_waits_is_dead_and_what_runs_goes_on(self, slow: Slow) -> None:
        async with Rig(options={"worker_concurrency": 1}) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            for number in range(300):
                rig.put(Do(), job_id=f"waits-{number}", organization=f"org-{number % 3}")
            await kill(rig, 'organization in ["org-0", "org-1", "acme"]')
            await eventually(lambda: len(rig.events("dead")) == 200)
            assert slow.ran == ["runs"]
            slow.goes_on.set()
            await rig.settled()
            assert len(slow.ran) == 101
            assert ("runs", "completed") in ends(rig)

    async def test_what_is_admitted_and_has_not_begun_is_dead(self) -> None:
        handle(run, runs_in="process")
        async with Rig(options={"worker_concurrency": 2}) as rig:
            rig.put(Input(what="sleep", number=700), job_id="runs")
            rig.put(Input(what="succeed"), job_id="waits")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: len(pipeline.runs.leased()) == 2 and rig.events("started"))
            await kill(rig, "attempt == 1")
            await rig.settled()
            assert sorted(ends(rig)) == [("runs", "completed"), ("waits", "dead")]

    async def test_a_retry_has_not_begun(self) -> None:
        async def fails(job: Job[Do]) -> None:
            raise Transient("no")

        handle(fails)
        async with Rig() as rig:
            rig.put(Do(), job_id="fails", maxAttempts=3)
            await rig.settled()
            await kill(rig, "attempt > 1")
            rig.put_again(rig.carried()[0])
            await rig.settled()
            [event] = rig.events("dead")
            assert (event["reason"], event["attempt"]) == ("killed: a test", 2)

    async def test_a_replay_is_killed_again_until_the_switch_is_lifted(self, slow: Slow) -> None:
        async with Rig() as rig:
            await kill(rig, ALL)
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            rig.put(Do(), job_id="job-1", headers={"replay-id": str(uuid7()).encode()})
            await rig.settled()
            assert ends(rig) == [("job-1", "dead"), ("job-1", "dead")]
            await lift(rig)
            rig.put(Do(), job_id="job-1")
            rig.put(Do(), job_id="job-1", headers={"replay-id": str(uuid7()).encode()})
            await rig.settled()
            assert slow.ran == ["job-1"], "the first delivery has ended, and stays so"
            assert ends(rig)[2:] == [("job-1", "completed")]

    async def test_it_takes_nothing_of_limits_and_of_its_line(self) -> None:
        ran: list[str] = []

        async def does(job: Job[Do]) -> None:
            ran.append(job.id)

        handle(does, ordering="key")
        async with Rig() as rig:
            await kill(rig, "payload.number == 1")
            for number in range(3):
                rig.put(Do(number=number), job_id=f"job-{number}", orderingKey="k")
            await rig.settled()
            assert ran == ["job-0", "job-2"]

    async def test_the_copy_of_a_job_that_runs_elsewhere_neither_kills_it_nor_holds_anything_up(
        self, slow: Slow
    ) -> None:
        async with Rig() as rig:
            [other] = await rig.ledger.admit([Candidate(identity("acme", "runs"), fence("", 1, 0))])
            assert isinstance(other, Run)
            await kill(rig, ALL)
            rig.put(Do(), job_id="runs")
            await rig.settled()
            assert rig.kinds() == []
            [copy] = rig.carried()
            assert headers_of(copy)["reason"] == "its job runs elsewhere"
            marked = Waiting(fence("", 2, 0))
            await rig.ledger.settle([Mark(identity("acme", "runs"), other.token, marked)])
            rig.clock.ahead += timedelta(minutes=1)
            rig.put_again(copy)
            await rig.settled()
            assert rig.kinds() == [], "it has gone on by now as another attempt"

    async def test_a_cancel_counts_first(self, slow: Slow) -> None:
        async with Rig() as rig:
            await kill(rig, ALL)
            await cancel(rig, "job-1")
            rig.put(Do(), job_id="job-1")
            await rig.settled()
            assert ends(rig) == [("job-1", "cancelled")]

    async def test_a_queue_that_waits_for_redis_kills_when_it_is_back(self, slow: Slow) -> None:
        async with Rig() as rig:
            await kill(rig, ALL)
            rig.ledger.down = True
            rig.put(Do(), job_id="job-1")
            await asyncio.sleep(0.05)
            assert rig.kinds() == []
            assert rig.position() is None
            rig.ledger.down = False
            await rig.settled()
            assert ends(rig) == [("job-1", "dead")]

    async def test_a_queue_that_goes_on_without_redis_kills_without_it(self) -> None:
        ran: list[str] = []

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.id)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            await kill(rig, 'type == "test.alert"')
            rig.ledger.down = True
            rig.put(Alert(), job_id="job-1")
            await rig.settled(CRITICAL)
            assert ran == []
            assert ends(rig) == [("job-1", "dead")]
