"""Pauses: which jobs they cover, what becomes of those, and that others go on."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ratelimit.control import Said
from streams.jobs import Job
from streams.limits import KNOWN_MAX
from streams.operators import Operators
from streams.pauses import Pause, Pauses
from streams.queues import CRITICAL, EMAILS, WEBHOOKS
from streams.rules import Scope
from tests.cancelling import cancel, ends
from tests.conftest import ExpectedErrors
from tests.deliveries import NOON, PLAIN, delivery
from tests.rig import Alert, Do, Mail, Rig, Slow, eventually, handle, headers_of
from tests.saying import pause, resume, said

SECOND = timedelta(seconds=1)
ACME = Pause(Scope(organization="acme"), NOON, "ana", "why")
ONE = {"worker_concurrency": 1}


def of(**scope: Any) -> Pause:
    return Pause(Scope(**scope), NOON, "ana")


class TestKnown:
    def test_a_pause_is_said_and_understood(self) -> None:
        ends = replace(ACME, until=NOON + SECOND)
        assert Pause.of_said(said(ends, ends.until)) == ends

    @pytest.mark.parametrize(
        ("scope", "covered"),
        [
            ({"queue": "emails"}, True),
            ({"type": "test.job"}, True),
            ({"provider": "mail"}, True),
            ({"organization": "acme"}, True),
            ({"queue": "emails", "type": "test.job", "provider": "mail", "organization": "acme"}, True),
            ({"queue": "emails", "organization": "globex"}, False),
            ({"queue": "webhooks", "organization": "acme"}, False),
            ({"type": "test.other"}, False),
            ({"provider": "stripe"}, False),
        ],
    )
    def test_it_covers_what_all_that_it_states_is_true_of(self, scope: dict[str, str], covered: bool) -> None:
        handler = replace(PLAIN, provider="mail")
        assert of(**scope).covers(handler, "acme") is covered
        pauses = Pauses()
        assert pauses.hear([said(of(**scope))], NOON)
        assert bool(pauses.of(handler, "acme")) is covered
        stopped = pauses.aside(delivery(handler=handler)) is not None or EMAILS.name in pauses.queues
        assert stopped is covered

    def test_only_that_of_a_whole_queue_stops_the_queue(self) -> None:
        pauses = Pauses()
        pauses.hear([said(of(queue="emails")), said(of(queue="webhooks", organization="acme"))], NOON)
        assert pauses.queues == {"emails"}
        assert pauses.aside(delivery()) is None

    def test_a_job_is_paused_while_any_pause_covers_it(self) -> None:
        pauses = Pauses()
        pauses.hear([said(ACME), said(of(type="test.job"))], NOON)
        assert len(pauses.of(PLAIN, "acme")) == 2
        for name in ("pause:type=test.job", "pause:organization=acme"):
            assert pauses.aside(delivery()) is not None
            assert pauses.hear([Said(2, name, None, None)], NOON)
        assert pauses.aside(delivery()) is None
        assert not pauses.known

    def test_it_ends_by_itself(self) -> None:
        pauses = Pauses()
        assert pauses.hear([said(ACME, NOON + SECOND)], NOON)
        assert not pauses.hear([], NOON + SECOND / 2)
        assert pauses.aside(delivery()) is not None
        assert pauses.hear([], NOON + SECOND)
        assert pauses.aside(delivery()) is None

    @pytest.mark.parametrize(
        ("lasted_s", "away_s"), [(-60, 5), (0, 5), (29, 5), (30, 30), (119, 30), (120, 120), (10**6, 120)]
    )
    def test_what_is_paused_is_away_for_as_long_as_it_lasted_by_now(self, lasted_s: int, away_s: int) -> None:
        assert ACME.away(NOON + lasted_s * SECOND) == away_s * SECOND

    def test_what_is_remembered_is_bounded(self) -> None:
        pauses = Pauses()
        pauses.hear([said(ACME)], NOON)
        for number in range(KNOWN_MAX + 10):
            assert pauses.aside(delivery(f"org-{number}")) is None
        assert len(pauses._aside) <= KNOWN_MAX
        assert pauses.aside(delivery()) is not None

    def test_what_is_not_understood_pauses_nothing(self, expected_errors: ExpectedErrors) -> None:
        expected_errors.add("is not understood")
        pauses, text = Pauses(), ACME.text()
        odd = {"pause:queue": text, "pause:x=1": text, "pause:queue=emails": "{}", "pause:type=a": "x"}
        assert not pauses.hear([Said(1, name, value, None) for name, value in odd.items()], NOON)
        assert not pauses.known

    def test_while_nothing_holds_a_job_costs_one_look(self) -> None:
        operators = Operators()
        assert not operators.hear([Said(1, "limit:rate:queue=emails", "1/s", None)], NOON)
        assert not operators.any
        assert operators.hear([said(ACME)], NOON)
        assert operators.any
        assert operators.hear([Said(2, ACME.name, None, None)], NOON)
        assert not operators.any


@pytest.mark.usefixtures("no_handlers")
class TestAside:
    async def test_it_steps_aside_untold_while_others_run_and_runs_after_the_pause(self, slow: Slow) -> None:
        async with Rig() as rig:
            await pause(rig, organization="acme")
            rig.put(Do(), job_id="paused", headers={"attempt": b"2", "snoozes": b"7"})
            rig.put(Do(), job_id="other", organization="globex")
            await rig.settled()
            assert slow.ran == ["other"]
            assert {event["jobId"] for event in rig.events()} == {"other"}
            [away] = rig.carried()
            headers = headers_of(away)
            assert away.topic == "jobs.retry.5s"
            assert (headers["attempt"], headers["snoozes"]) == ("2", "7")
            assert headers["reason"] == "paused: organization=acme, a test"

            rig.clock.ahead += timedelta(seconds=5)
            rig.put_again(away, WEBHOOKS)
            await rig.settled()
            assert slow.ran == ["other"]

            await resume(rig, organization="acme")
            rig.clock.ahead += timedelta(seconds=5)
            rig.put_again(rig.carried()[-1], WEBHOOKS)
            await rig.settled()
            assert slow.ran == ["other", "paused"]
            [done] = [event for event in rig.events("completed") if event["jobId"] == "paused"]
            assert (done["attempt"], done["snoozes"]) == (2, 7)

    async def test_in_a_long_pause_it_is_away_for_longer(self, slow: Slow) -> None:
        async with Rig() as rig:
            await pause(rig, organization="acme", ago=timedelta(hours=1))
            rig.put(Do())
            await rig.settled()
            assert [one.topic for one in rig.carried()] == ["jobs.retry.2m"]

    async def test_what_waits_in_the_window_steps_aside_and_what_runs_goes_on(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            for number in range(40):
                rig.put(Do(), job_id=f"acme-{number}")
                rig.put(Do(), job_id=f"globex-{number}", organization="globex")
            await pause(rig, organization="acme", queue="webhooks")
            await eventually(lambda: len(rig.carried()) == 40)
            slow.goes_on.set()
            await rig.settled()
            assert slow.ran == ["runs", *(f"globex-{number}" for number in range(40))]
            assert rig.worker.pipelines[WEBHOOKS.topic].window.records == 0

    async def test_what_is_not_due_keeps_its_time(self, slow: Slow) -> None:
        async with Rig() as rig:
            await pause(rig, organization="acme")
            due = b"%d" % int((rig.clock() + timedelta(hours=8)).timestamp() * 1000)
            rig.put(Do(), headers={"not-before": due})
            await rig.settled()
            [away] = rig.carried()
            assert away.topic == "jobs.retry.6h"
            assert headers_of(away)["not-before"] == due.decode()

    async def test_another_job_type_of_the_organization_goes_on(self, slow: Slow) -> None:
        ran: list[str] = []

        async def alerts(job: Job[Alert]) -> None:
            ran.append(job.id)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            await pause(rig, organization="acme", type="test.do")
            rig.put(Alert(), job_id="alert")
            rig.put(Do(), job_id="paused")
            await rig.settled(CRITICAL)
            await rig.settled()
            assert ran == ["alert"]
            assert slow.ran == []

    async def test_in_an_ordering_line_it_keeps_its_place(self) -> None:
        ran: list[str] = []

        async def does(job: Job[Do]) -> None:
            ran.append(job.id)

        handle(does, ordering="key")
        async with Rig() as rig:
            await pause(rig, organization="acme")
            for number in range(3):
                rig.put(Do(), job_id=f"job-{number}", orderingKey="k")
            await rig.settled()
            assert len(rig.carried()) == 3
            await resume(rig, organization="acme")
            rig.put(Do(), job_id="job-3", orderingKey="k")
            rig.clock.ahead += timedelta(seconds=5)
            for away in reversed(rig.carried()[:3]):
                rig.put_again(away, WEBHOOKS)
            await eventually(lambda: len(ran) == 4)
            assert ran == [f"job-{number}" for number in range(4)]

    async def test_one_that_ends_while_redis_is_away_ends(self, slow: Slow) -> None:
        async with Rig() as rig:
            await pause(rig, organization="acme", keep=timedelta(minutes=1))
            rig.control.down = True
            rig.clock.ahead += timedelta(minutes=1)
            await rig.worker.hear()
            rig.put(Do(), job_id="runs")
            await rig.settled()
            assert slow.ran == ["runs"]


@pytest.mark.usefixtures("no_handlers")
class TestWholeQueue:
    async def test_it_stands_still_and_is_well_and_goes_on_where_it_was(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            (partition, *_) = [one for one in rig.worker._offsets if one.topic == WEBHOOKS.topic]
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            for number in range(60):
                rig.put(Do(), job_id=f"waits-{number}")
            assert rig.worker.has_room(partition)
            await pause(rig, queue="webhooks")
            assert not rig.worker.has_room(partition)
            slow.goes_on.set()
            await eventually(lambda: rig.events("completed"))
            # Once per flush, what a limit holds and what holds positions back would step aside.
            pipeline.window.hold_lane("acme", rig.clock() + timedelta(days=1))
            asked = rig.ledger.asked
            rig.worker._make_way()
            await rig.worker.hear()
            assert slow.ran == ["runs"]
            assert pipeline.window.records == 60
            assert not pipeline.could_go_on
            assert rig.ledger.asked == asked
            assert rig.carried() == []
            pipeline.limits_changed()
            await resume(rig, queue="webhooks")
            await rig.settled()
            assert slow.ran == ["runs", *(f"waits-{number}" for number in range(60))]

    async def test_other_queues_go_on(self, slow: Slow) -> None:
        ran: list[str] = []

        async def sends(job: Job[Mail]) -> None:
            ran.append(job.id)

        handle(sends, EMAILS)
        async with Rig() as rig:
            await pause(rig, queue="webhooks")
            rig.put(Do(), job_id="paused")
            rig.put(Mail(), job_id="mail")
            await rig.settled(EMAILS)
            assert ran == ["mail"]
            assert slow.ran == []
            assert rig.position() is None

    async def test_what_is_cancelled_in_it_ends(self, slow: Slow) -> None:
        async with Rig() as rig:
            await pause(rig, queue="webhooks")
            rig.put(Do(), job_id="job-1")
            await cancel(rig, "job-1")
            await rig.settled()
            assert ends(rig) == [("job-1", "cancelled")]
