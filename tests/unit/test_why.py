"""Each reason that a job waits for, as the worker that has it tells it."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ratelimit import Known
from ratelimit.control import ModelControl
from ratelimit.model import ModelAdmission
from streams import why
from streams.errors import InvalidJob, Transient, UnknownJob
from streams.jobs import Job
from streams.kills import Kill
from streams.pauses import Pause
from streams.questions import Answers
from streams.queues import CRITICAL, EMAILS, INTEGRATIONS, WEBHOOKS
from streams.reasons import explain
from streams.rules import Rate, Rule, Scope, allowed_text
from streams.settings import load_settings
from streams.why import Findings, Place
from tests.asking import explained, look
from tests.cancelling import DAY, say
from tests.in_process import Input, run
from tests.rig import Alert, Do, Mail, Rig, Slow, Sync, eventually, handle, handle_slow
from tracking.jobs import Job as Stored

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)
NOON = datetime(2026, 4, 15, 12, tzinfo=UTC)
ONE = {"worker_concurrency": 1}


def stored(status: str, **facts: Any) -> Stored:
    """Return a job of acme as the store has it."""
    unset: dict[str, Any] = dict.fromkeys(Stored.__dataclass_fields__)
    job = Stored(**unset)
    known = {"organization_id": "acme", "job_id": "job", "job_type": "test.do", "queue_name": "webhooks"}
    counters = {"queued_at": NOON, "last_event_at": NOON, "attempt": 1, "max_attempts": 3, "snoozes": 0}
    return replace(job, **{**known, **counters, "status": status, **facts})


@pytest.fixture
def slow() -> Slow:
    return handle_slow()


class TestOnAWorker:
    async def test_it_runs(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(number=1), job_id="job")
            await eventually(lambda: slow.ran == ["job"])
            told = await explained(rig, "job")
            assert (told.where, told.worker) == ("running", "primary/worker-1")
            assert told.sentences[0].startswith("It runs on primary/worker-1, attempt 1 of 3, for ")
            slow.goes_on.set()
            await rig.settled()

    async def test_it_is_admitted_and_waits_for_a_process(self) -> None:
        handle(run, runs_in="process")
        async with Rig(options={"worker_concurrency": 3}) as rig:
            rig.put(Input(what="sleep", number=700), job_id="runs")
            rig.put(Input(what="succeed"), job_id="waits")
            rig.put(Input(what="succeed"), job_id="ready")
            await eventually(lambda: rig.events("started"))
            told = await explained(rig, "ready")
            assert told.where == "ready"
            assert told.sentences[0].endswith("starts when a slot or its process is free, with 1 before it.")
            await rig.settled()

    async def test_in_its_lane_it_has_a_position_beside_others_and_an_expected_start(
        self, slow: Slow
    ) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            rig.put(Do(), organization="globex")
            for number in range(3):
                rig.put(Do(), job_id=f"job-{number}")
            rig.put(Do(), job_id="urgent", priority=1)
            told = await explained(rig, "job-2")
            assert told.where == "window"
            assert "2 organizations share the 1 slots, 1 of them taken" in told.sentences[0]
            assert told.sentences[1] == "Of its organization 4 jobs wait there, and 3 of them go before it."
            assert told.starts_at is not None
            urgent = await explained(rig, "urgent")
            assert "it is the next of them" in urgent.sentences[1]
            assert urgent.starts_at is not None
            assert urgent.starts_at < told.starts_at + SECOND
            slow.goes_on.set()
            await rig.settled()

    async def test_the_limit_of_its_queue_is_named_with_what_it_allows_and_what_is_left(self) -> None:
        ran: list[str] = []

        async def sends(job: Job[Mail]) -> None:
            ran.append(job.id)

        handle(sends, EMAILS)
        async with Rig() as rig:
            await limit(rig, Scope(queue="emails"), Rate(1, timedelta(minutes=1)))
            for number in range(4):
                rig.put(Mail(), job_id=f"mail-{number}")
            await eventually(lambda: ran == ["mail-0"])
            await eventually(lambda: rig.worker.limits.refusals)
            found = await look(rig, "mail-3")
            told = explain(found)
            assert told.where == "window"
            (held,) = [one for one in told.sentences if "limit" in one]
            assert held.startswith("The limit rate:queue=emails (1/m) holds all jobs of its queue until ")
            assert [(one.limit.name, one.left) for one in found.limits] == [("rate:queue=emails", 0)]
            # One a minute, and two others go before it.
            assert told.starts_at is not None
            assert timedelta(minutes=2) < told.starts_at - rig.clock() < timedelta(minutes=4)
            assert rig.worker.limits.refusals["emails", "rate", "all"] > 0

    async def test_a_limit_of_its_organization_and_one_of_its_type(self) -> None:
        async def synchronises(job: Job[Sync]) -> None:
            return None

        handle(synchronises, INTEGRATIONS)
        handle_slow()
        async with Rig() as rig:
            await limit(rig, Scope(type="test.do"), Rate(1, timedelta(minutes=1)))
            await limit(rig, Scope("integrations", organization="*"), Rate(1, timedelta(minutes=1)))
            for number in range(2):
                rig.put(Sync(), job_id=f"sync-{number}")
                rig.put(Do(), job_id=f"do-{number}")
            await eventually(lambda: len(rig.worker.limits.refusals) == 2)
            of_lane = await explained(rig, "sync-1")
            assert any("holds all jobs of its organization in this queue" in one for one in of_lane.sentences)
            of_type = await explained(rig, "do-1")
            assert any("The limit rate:type=test.do (1/m) holds it until" in one for one in of_type.sentences)

    async def test_an_earlier_one_of_its_ordering_key_goes_first(self) -> None:
        goes_on = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await goes_on.wait()

        handle(waits, ordering="key")
        async with Rig() as rig:
            for number in range(3):
                rig.put(Do(), job_id=f"job-{number}", orderingKey="account-7")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.all())
            told = await explained(rig, "job-2")
            assert any(
                one.startswith("2 earlier jobs of its ordering key 'account-7' go first")
                for one in told.sentences
            )
            assert told.starts_at is None
            goes_on.set()
            await rig.settled()

    async def test_an_earlier_one_of_its_key_waits_for_its_next_attempt(self) -> None:
        async def fails(job: Job[Do]) -> None:
            raise Transient("no", delay=timedelta(minutes=5))

        handle(fails, ordering="key")
        async with Rig() as rig:
            rig.put(Do(), job_id="first", orderingKey="key")
            await eventually(lambda: rig.events("retried"))
            await rig.settled()
            rig.put(Do(), job_id="second", orderingKey="key")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: pipeline.window.wakes_at())
            told = await explained(rig, "second")
            assert any("waits elsewhere, and is due" in one for one in told.sentences)

    async def test_its_job_runs_elsewhere(self, slow: Slow) -> None:
        async with Rig() as rig:
            queue, value, headers = rig.record(Do(), job_id="job")
            rig.put_bytes(queue, b"acme", value, headers)
            await rig.settled()
            del slow
            await hold_lease(rig, "acme:other")
            rig.put(Do(), job_id="other")
            pipeline = rig.worker.pipelines[WEBHOOKS.topic]
            await eventually(lambda: pipeline.window.wakes_at())
            told = await explained(rig, "other")
            assert any("Another delivery of it holds its lease" in one for one in told.sentences)

    async def test_it_is_not_due_yet(self, slow: Slow) -> None:
        async with Rig() as rig:
            due = rig.clock() + 0.9 * SECOND
            rig.put(Do(), job_id="job", headers={"not-before": b"%d" % int(due.timestamp() * 1000)})
            told = await explained(rig, "job")
            assert any(one.startswith("It is not due before ") for one in told.sentences)

    async def test_the_ledger_is_away(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.ledger.down = True
            rig.put(Do(), job_id="job")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].window.wakes_at())
            told = await explained(rig, "job")
            assert any("and webhooks does not go on without it" in one for one in told.sentences)

    async def test_it_has_ended_and_the_broker_does_not_take_what_came_of_it(self) -> None:
        async def succeeds(job: Job[Alert]) -> None:
            return None

        handle(succeeds, CRITICAL)
        async with Rig() as rig:
            rig.producer.open.clear()
            rig.put(Alert(), job_id="job")
            await eventually(lambda: rig.worker.settlement.unsettled == 1)
            assert (await explained(rig, "job")).where == "ending"
            rig.producer.open.set()
            await rig.settled(CRITICAL)

    async def test_pauses_and_cancels_that_cover_it_are_named(self, slow: Slow) -> None:
        async with Rig(options=ONE) as rig:
            rig.put(Do(number=1), job_id="runs")
            await eventually(lambda: slow.ran == ["runs"])
            stated = ("queue=webhooks", "queue=emails", "organization=globex")
            pauses = [Pause(Scope.of_text(one), NOON, "ann", "slow store") for one in stated]
            await rig.control.say({one.name: one.text() for one in pauses}, None)
            rig.put(Do(), job_id="job")
            told = await explained(rig, "job")
            assert [one for one in told.sentences if "paused" in one] == [
                "ann has paused queue=webhooks: slow store.",
            ]
            assert told.starts_at is None
            assert not [one for one in told.sentences if "starts about" in one]
            await rig.control.say({one.name: None for one in pauses}, DAY)
            await rig.worker.hear()
            slow.goes_on.set()
            await rig.settled()


class TestElsewhere:
    async def test_an_unknown_job_is_an_error_that_says_who_was_asked(self, slow: Slow) -> None:
        async with Rig() as rig:
            with pytest.raises(UnknownJob, match="there is no store that could be asked"):
                await explained(rig, "nobody")
            rig.put(Do(number=1), job_id="job")
            await eventually(lambda: slow.ran == ["job"])
            with pytest.raises(UnknownJob):
                await explained(rig, "job", "globex")
            slow.goes_on.set()
            await rig.settled()

    async def test_bad_ids_are_refused_in_a_sentence(self) -> None:
        nobody = ModelAdmission(), ModelControl()
        for ids in (("job", "no org"), ("no job", "acme")):
            with pytest.raises(InvalidJob, match="must be 1 to 128 letters"):
                await why.look(*ids, load_settings(_env_file=None), nobody[1], nobody[0])

    @pytest.mark.parametrize(
        ("status", "facts", "says"),
        [
            ("completed", {"worker_id": "w", "duration_ms": 1500.0, "finished_at": NOON},
             "It completed at 2026-04-15 12:00:00Z on w, in attempt 1 of 3, after 1.5 s."),
            ("dead", {"error_kind": "Poison", "error_message": "no", "finished_at": NOON},
             "It is dead since 2026-04-15 12:00:00Z, in attempt 1 of 3: Poison: no."),
            ("cancelled", {"reason": "wrong list", "finished_at": NOON},
             "It was cancelled at 2026-04-15 12:00:00Z: wrong list."),
        ],
    )  # fmt: skip
    async def test_how_it_ended(self, status: str, facts: dict[str, Any], says: str) -> None:
        told = explain(Findings("acme", "job", NOON, stored=True, job=stored(status, **facts)))
        assert (told.where, told.sentences) == ("finished", (says,))

    @pytest.mark.parametrize(
        ("status", "facts", "says"),
        [
            ("retrying", {"error_kind": "Transient", "error_message": "away"},
             "for attempt 1 of 3 failed: Transient: away."),
            ("delayed", {"snoozes": 2, "reason": "outage of mail.example"},
             "for it was snoozed: outage of mail.example."),
            ("delayed", {}, "for it was published to run then."),
        ],
    )  # fmt: skip
    async def test_it_waits_in_a_retry_topic(self, status: str, facts: dict[str, Any], says: str) -> None:
        due = NOON + timedelta(minutes=5)
        job = stored(status, next_retry_at=due, **facts)
        told = explain(Findings("acme", "job", NOON, stored=True, job=job))
        assert (told.where, told.starts_at) == ("retry", due)
        assert told.sentences[0].startswith(
            "It waits in a retry topic and is due 2026-04-15 12:05:00Z (in 5 min)"
        )
        assert told.sentences[0].endswith(says)

    async def test_its_record_is_not_read_yet(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(), job_id="read")
            await rig.settled()
            told = await explained(rig, "job", job=stored("queued"), place=Place("jobs.webhooks", 0, 501))
            assert (told.where, told.worker) == ("unread", "primary/worker-1")
            assert "about 500 records lie before it in partition 0 of jobs.webhooks" in told.sentences[0]
            assert told.starts_at is not None
            nobodys = await explained(rig, "job", job=stored("queued"), place=Place("jobs.webhooks", 7, 0))
            assert "which no worker that answered has" in nobodys.sentences[0]
            other = stored("queued", queue_name="maintenance")
            none = await explained(rig, "job", job=other, place=Place("jobs.maintenance", 0, 0))
            assert (
                none.sentences[0] == "No scheduled worker lives or answers, so nobody reads jobs.maintenance."
            )

    async def test_it_has_stepped_aside(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(), job_id="read")
            await rig.settled()
            told = await explained(rig, "job", job=stored("queued"), place=Place("jobs.webhooks", 0, 0))
            assert told.where == "aside"
            assert "it has stepped aside into a retry topic" in told.sentences[0]

    async def test_a_lease_that_nobody_answers_for(self, slow: Slow) -> None:
        async with Rig() as rig:
            await hold_lease(rig, "acme:job")
            told = await explained(rig, "job", job=stored("running", worker_id="w"))
            assert told.where == "leased"
            assert "It is leased, and no worker that answered has it" in told.sentences[0]

    async def test_the_worker_that_ran_it_is_gone(self) -> None:
        ran_out = Known("leased", "f", 1, NOON - SECOND)
        job = stored("running", worker_id="w")
        told = explain(Findings("acme", "job", NOON, stored=True, job=job, known=ran_out))
        assert told.where == "unknown"
        assert "The store has it as running on w, but nobody holds a lease" in told.sentences[0]
        assert told.sentences[1] == "1 workers ended while they ran it."

    async def test_who_did_not_answer_is_named(self) -> None:
        answers = Answers({}, ["primary/w"])
        told = explain(Findings("acme", "job", NOON, stored=False, known=Known("waiting"), answers=answers))
        assert told.sentences[-1].startswith("Not answered by primary/w")

    async def test_a_cancel_that_no_worker_has_met(self, slow: Slow) -> None:
        async with Rig() as rig:
            await say(rig, "job")
            told = await explained(rig, "job", job=stored("queued"))
            assert "It is cancelled, and ends as soon as a worker meets it." in told.sentences

    async def test_what_is_paused_has_no_expected_start(self, slow: Slow) -> None:
        async with Rig() as rig:
            rig.put(Do(), job_id="read")
            await rig.settled()
            pause = Pause(Scope(queue="webhooks"), NOON, "ann", "slow store")
            await rig.control.say({pause.name: pause.text()}, None)
            told = await explained(rig, "job", job=stored("queued"), place=Place("jobs.webhooks", 0, 501))
            assert (told.where, told.starts_at) == ("unread", None)
            assert not [one for one in told.sentences if "starts about" in one]

    async def test_a_kill_switch_that_no_worker_has_held_against_it_yet(self, slow: Slow) -> None:
        async with Rig() as rig:
            kill = Kill.of("k1", 'type == "test.do"', since=NOON, by="ann", reason="broken")
            await rig.control.say({kill.name: kill.text()}, None)
            told = await explained(rig, "job", job=stored("queued"))
            (said,) = [one for one in told.sentences if "kill switch" in one]
            assert said == (
                "It is a dead letter as soon as a worker meets it, if a kill switch matches it: "
                'k1, type == "test.do".'
            )


async def limit(rig: Rig, scope: Scope, rate: Rate) -> None:
    """Limit what the worker runs, as an operator does."""
    rule = Rule("rate", scope, rate)
    await rig.control.say({rule.name: allowed_text(rate)}, None)
    await rig.worker.hear()


async def hold_lease(rig: Rig, identity: str) -> None:
    """Let another worker run a job."""
    from ratelimit import Candidate, fence

    await rig.ledger.admit([Candidate(identity, fence("", 1, 0))])
