"""From outcome to durable: what is written, marked and settled, and in which order."""

import asyncio
import json
import logging
from datetime import timedelta

import pytest
from confluent_kafka import KafkaError

from ratelimit import Candidate, Done, Lease, Run, Waiting, fence, identity
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Job, Result
from streams.queues import CRITICAL, WEBHOOKS
from tests.conftest import ExpectedErrors
from tests.rig import Alert, Do, Rig, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

SECOND = timedelta(seconds=1)


class Number(Result):
    """Which number was worked on."""

    number: int


async def works(job: Job[Do]) -> Number:
    return Number(number=job.payload.number)


class TestOutcomes:
    async def test_a_quick_job_is_one_event_with_both_times_and_a_settled_offset(self) -> None:
        handle(works)
        async with Rig() as rig:
            rig.put(Do(number=7), job_id="job-7")
            await rig.settled()
            (event,) = rig.events()
            assert event["kind"] == "completed"
            assert event["jobId"] == "job-7"
            assert event["output"] == '{"number":7}'
            assert json.loads(event["input"])["number"] == 7
            assert event["queuedAt"] <= event["startedAt"] <= event["at"]
            assert event["at"] - event["startedAt"] < timedelta(milliseconds=100)
            assert (event["workerId"], event["attempt"], event["origin"]) == (
                "worker-1",
                1,
                "jobs.webhooks/0/0",
            )
            assert rig.carried() == []
            assert await rig.ledger.completed([identity("acme", "job-7")]) == [True]

    async def test_only_a_job_that_runs_for_100_ms_is_told_as_started(self) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            if job.payload.number:
                job.progress(0.5, "half")
                await ends.wait()

        handle(waits)
        async with Rig() as rig:
            rig.put(Do(), job_id="quick")
            # Between two flushes, so that the next one comes before the job has run for 100 ms.
            await asyncio.sleep(0.05)
            rig.put(Do(number=1), job_id="slow")
            await eventually(lambda: "progressed" in rig.kinds(), "progress is told")
            assert [(one["kind"], one["jobId"]) for one in rig.events()] == [
                ("completed", "quick"), ("started", "slow"), ("progressed", "slow"),
            ]  # fmt: skip
            _, started, progressed = rig.events()
            assert started["at"] - started["startedAt"] >= timedelta(milliseconds=100)
            assert (progressed["progress"], progressed["reason"]) == (0.5, "half")
            ends.set()
            await rig.settled()
            assert rig.kinds() == ["completed", "started", "progressed", "completed"]

    async def test_a_failure_is_retried_with_the_next_attempt_and_the_same_bytes(self) -> None:
        async def fails_once(job: Job[Do]) -> None:
            if job.attempt == 1:
                raise Transient("the provider is down", delay=timedelta(minutes=3))

        handle(fails_once)
        async with Rig() as rig:
            queue, value, stated = rig.record(Do(number=1), job_id="job-1")
            rig.put_bytes(queue, b"acme", value, {**stated, "traceparent": b"00-abc-01"})
            await rig.settled()
            (carried,) = rig.carried()
            assert carried.topic == "jobs.retry.2m"
            assert carried.key == b"acme"
            assert carried.value == value
            headers = headers_of(carried)
            assert (headers["attempt"], headers["snoozes"], headers["queue"]) == ("2", "0", "webhooks")
            assert headers["origin"] == "jobs.webhooks/0/0"
            assert headers["traceparent"] == "00-abc-01"
            assert headers["ce_id"] == "job-1"
            assert headers["reason"] == "streams.errors.Transient: the provider is down"
            (event,) = rig.events()
            assert (event["kind"], event["attempt"]) == ("retried", 1)
            assert int(headers["not-before"]) >= event["notBefore"].timestamp() * 1000
            assert event["notBefore"] - event["at"] == timedelta(minutes=3)
            (mark,) = rig.ledger.marks
            assert mark.end == Waiting(fence("", 2, 0))

            rig.put_again(carried)
            await eventually(lambda: len(rig.carried()) == 2, "too early, so it waits on")
            rig.clock.ahead = timedelta(minutes=3)
            rig.put_again(carried)
            await rig.settled()
            assert rig.kinds() == ["retried", "completed"]
            assert rig.events()[1]["attempt"] == 2

    async def test_a_job_is_dead_when_its_attempts_are_spent(self, expected_errors: ExpectedErrors) -> None:
        expected_errors.add("failed on attempt [123] with ValueError")
        attempts: list[int] = []

        async def fails(job: Job[Do]) -> None:
            attempts.append(job.attempt)
            raise ValueError("a bug")

        handle(fails)
        async with Rig() as rig:
            rig.put(Do(), job_id="job-1")
            for count in (1, 2):
                await eventually(lambda count=count: len(rig.carried()) == count)  # type: ignore[misc]
                rig.put_again(rig.carried()[-1])
            await rig.settled()
            assert attempts == [1, 2, 3]
            assert rig.kinds() == ["retried", "retried", "dead"]
            (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
            headers = headers_of(letter)
            assert headers["attempt"] == "3"
            assert headers["reason"] == "all 3 attempts failed"
            assert headers["error-kind"] == "ValueError"
            assert headers["error-message"] == "a bug"
            assert "not-before" not in headers
            assert rig.events("dead")[0]["error"]["stack"].rstrip().endswith("ValueError: a bug")
            # Its copies stay dead; a replay does not.
            rig.put_again(letter)
            await rig.settled()
            assert attempts == [1, 2, 3]
            replayed = dict(letter.headers or []) | {
                "replay-id": b"0191b2c3-0000-7000-8000-000000000001", "attempt": b"1",
            }  # fmt: skip
            rig.put_again(letter._replace(headers=list(replayed.items())))
            await rig.settled()
            assert attempts == [1, 2, 3, 1]

    async def test_max_attempts_of_the_job_override_those_of_its_type(self) -> None:
        async def fails(job: Job[Do]) -> None:
            raise Transient("again")

        handle(fails)
        async with Rig() as rig:
            rig.put(Do(), maxAttempts=1)
            await rig.settled()
            assert rig.kinds() == ["dead"]

    async def test_poison_is_buried_at_once(self) -> None:
        async def refuses(job: Job[Do]) -> None:
            raise Poison("no such customer")

        handle(refuses)
        async with Rig() as rig:
            rig.put(Do())
            await rig.settled()
            (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
            assert headers_of(letter)["reason"] == "poison"
            assert rig.carried() == []

    async def test_a_snooze_spends_no_attempt_and_has_a_limit(self) -> None:
        async def snoozes(job: Job[Do]) -> None:
            raise Snooze("the provider\ud800 is busy", delay=timedelta(milliseconds=1))

        handle(snoozes, max_attempts=1)
        async with Rig(options={"snooze_limit": 2}) as rig:
            rig.put(Do())
            for count in (1, 2):
                await eventually(lambda count=count: len(rig.carried()) == count)  # type: ignore[misc]
                carried = rig.carried()[-1]
                assert headers_of(carried)["attempt"] == "1"
                assert headers_of(carried)["snoozes"] == str(count)
                assert carried.topic == WEBHOOKS.topic
                rig.put_again(carried)
            await rig.settled()
            assert rig.kinds() == ["snoozed", "snoozed", "dead"]
            assert rig.events("dead")[0]["reason"] == ("snoozed 2 times, last because: the provider? is busy")
            assert [mark.end for mark in rig.ledger.marks[:2]] == [
                Waiting(fence("", 1, 1)), Waiting(fence("", 1, 2)),
            ]  # fmt: skip

    async def test_follow_ups_come_with_the_completion_and_with_the_same_ids_each_time(self) -> None:
        async def asks(job: Job[Do]) -> None:
            job.follow_up(Alert(number=1))
            job.follow_up(Alert(number=2), delay=timedelta(minutes=1))

        async def alerts(job: Job[Alert]) -> None:
            return None

        handle(asks)
        handle(alerts, CRITICAL)
        ids = []
        for _ in range(2):
            async with Rig() as rig:
                rig.put(Do(), job_id="job-1")
                await rig.settled()
                first, second = rig.carried()
                assert (first.topic, second.topic) == (CRITICAL.topic, "jobs.retry.30s")
                assert {first.key, second.key} == {b"acme"}
                ids.append([headers_of(one)["ce_id"] for one in (first, second)])
                assert rig.kinds() == ["queued", "queued", "completed"]
                rig.put_again(first, CRITICAL)
                await rig.settled(CRITICAL)
                assert rig.events()[-1]["jobType"] == "test.alert"
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 2

    async def test_a_follow_up_that_cannot_be_published_fails_the_attempt_and_not_the_worker(
        self, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("failed on attempt 1 with streams.errors.InvalidJob")

        async def asks_for_too_much(job: Job[Do]) -> None:
            job.follow_up(Do(data=b"x" * 950_000))

        handle(asks_for_too_much)
        async with Rig() as rig:
            rig.put(Do())
            await rig.settled()
            assert rig.kinds() == ["retried"]
            assert "store large input as an artifact" in rig.events()[0]["error"]["message"]

    async def test_an_event_can_be_told_of_any_bytes_and_any_text(
        self, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("with ValueError")

        async def odd(job: Job[Do]) -> None:
            job.progress(float("nan"), "\udfff" * 10_000)
            await asyncio.sleep(0.25)
            raise ValueError("\ud800 and \x00")

        handle(odd)
        async with Rig() as rig:
            rig.put(Do(data=b"\xff\x00"))
            await rig.settled()
            assert rig.kinds() == ["started", "progressed", "retried"]
            assert rig.events("progressed")[0]["reason"] == "?" * 500
            assert rig.events("retried")[0]["error"]["message"] == "? and \x00"

    async def test_secrets_are_in_no_event_and_no_log(
        self, caplog: pytest.LogCaptureFixture, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("with RuntimeError")
        caplog.set_level(logging.DEBUG)

        async def fails(job: Job[Do]) -> None:
            secret_local = job.payload.password
            await asyncio.sleep(0.25)
            raise RuntimeError(f"wrong, {len(secret_local)} characters, {job.payload!r}")

        handle(fails)
        async with Rig() as rig:
            rig.put(Do(number=3, password="hunter2"), maxAttempts=1)
            await rig.settled()
            assert rig.kinds() == ["started", "dead"]
            assert json.loads(rig.events("dead")[0]["input"]) == {"number": 3, "data": ""}
            told = b"".join(one.value or b"" for one in rig.written("jobs.lifecycle"))
            told += b"".join(data for one in rig.producer.sent for _, data in one.headers or [] if data)  # type: ignore[misc]
            assert b"hunter2" not in told
            assert "hunter2" not in caplog.text


class TestDurability:
    async def test_records_then_ledger_then_offsets(self) -> None:
        handle(works)
        async with Rig() as rig:
            rig.producer.open.clear()
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: not rig.worker.pipelines[WEBHOOKS.topic].runs.unfinished(), "it has run")
            await asyncio.sleep(0.05)
            assert rig.ledger.marks == []
            assert rig.position() is None
            rig.ledger.down = True
            rig.producer.open.set()
            await eventually(lambda: rig.kinds() == ["completed"], "the broker has it")
            await asyncio.sleep(0.05)
            assert rig.position() is None
            rig.ledger.down = False
            await rig.settled()
            assert [mark.end for mark in rig.ledger.marks] == [Done()]
            assert rig.kinds() == ["completed"], "written once"

    async def test_what_the_broker_refuses_ends_the_worker_with_nothing_settled(
        self, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("'settle' ended by BrokerRefused")
        handle(works)
        async with Rig(fails=True) as rig:
            rig.producer.error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
            rig.put(Do())
            await eventually(rig.worker.failure.done)
            assert rig.position() is None
            assert rig.ledger.marks == []

    async def test_without_redis_a_closed_queue_waits_and_an_open_one_goes_on(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def alerts(job: Job[Alert]) -> None:
            if job.attempt == 1:
                raise Transient("once more", delay=5 * SECOND)

        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        handle(alerts, CRITICAL)
        async with Rig() as rig:
            rig.put(Do(), job_id="running")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            rig.ledger.down = True
            ends.set()
            rig.put(Do(), job_id="new")
            await eventually(lambda: "outcomes wait for the ledger" in caplog.text)
            for number in range(3):
                rig.put(Alert(number=number))
            await rig.settled(CRITICAL)
            assert len(rig.written("jobs.retry.5s")) == 3, "their retries do not wait for the others' ledger"
            assert rig.position(WEBHOOKS) is None
            rig.ledger.down = False
            await rig.settled(WEBHOOKS)
            assert {one["jobId"] for one in rig.events("completed")} == {"running", "new"}

    async def test_a_job_that_has_ended_and_comes_again_when_the_ledger_is_gone_does_not_run_again(
        self,
    ) -> None:
        runs: list[str] = []

        async def alerts(job: Job[Alert]) -> None:
            runs.append(job.id)

        handle(alerts, CRITICAL)
        async with Rig() as rig:
            rig.put(Alert(), job_id="job-1")
            await rig.settled(CRITICAL)
            rig.ledger.down = True
            rig.put(Alert(), job_id="job-1")
            rig.put(Alert(), job_id="job-2")
            await rig.settled(CRITICAL)
            assert runs == ["job-1", "job-2"]

    async def test_a_zombie_changes_nothing_in_the_ledger(self, caplog: pytest.LogCaptureFixture) -> None:
        ends = asyncio.Event()

        async def waits(job: Job[Do]) -> None:
            await ends.wait()

        handle(waits)
        async with Rig(lease=SECOND) as rig:
            rig.put(Do(), job_id="job-1")
            await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
            rig.clock.ahead += 2 * SECOND
            name = identity("acme", "job-1")
            (taken_over,) = await rig.ledger.admit([Candidate(name, fence("", 1, 0))])
            assert isinstance(taken_over, Run)
            ends.set()
            await rig.settled()
            assert "the lease of acme:job-1 was lost before it ended" in caplog.text
            assert await rig.ledger.completed([name]) == [False]
            assert await rig.ledger.renew([Lease(name, taken_over.token)]) == [True]
