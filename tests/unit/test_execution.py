"""One attempt: wherever it runs, however it ends, it comes back as an outcome and frees what it held."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from providers.errors import RateLimited, Refused, Unavailable
from streams.backoff import Backoff
from streams.errors import Poison, Snooze, Transient
from streams.execution import LONGEST_DELAY, OUTPUT_CAP, Execution, failed, judge
from streams.jobs import Job, Payload, Result, RunsIn
from streams.outcome import Attempt, Completed, DeadLetter, Outcome, Retry, Snoozed
from tests.conftest import ExpectedErrors
from tests.deliveries import attempted, delivery, handler, job

SECOND = timedelta(seconds=1)


@pytest.fixture
async def execution() -> AsyncIterator[Execution]:
    execution = Execution(process_count=1)
    yield execution
    await execution.close()


async def call(
    execution: Execution,
    function: Callable[[Job[Any]], Any],
    runs_in: RunsIn,
    *,
    attempt: int = 1,
    **options: Any,
) -> tuple[Outcome, Attempt]:
    timeout, payload = options.pop("timeout", 20 * SECOND), options.pop("payload", Payload())
    handled = handler(function, runs_in, timeout)
    outcome, measured = await attempted(execution, handled, job(payload, attempt=attempt, **options))
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    return outcome, measured


async def overdue(execution: Execution) -> None:
    """Do what the worker does every flush, until the test ends."""
    while True:
        execution.cancel_overdue()
        await asyncio.sleep(0.005)


@pytest.fixture
async def flushing(execution: Execution) -> AsyncIterator[None]:
    flush = asyncio.create_task(overdue(execution))
    yield
    flush.cancel()


class Answer(Result):
    """The answer."""

    text: str = ""
    data: bytes = b""


class TestInTheLoop:
    async def test_a_result_is_the_output(self, execution: Execution) -> None:
        async def answers(job: Job[Payload]) -> Answer:
            return Answer(text="42")

        assert (await call(execution, answers, "loop"))[0] == Completed('{"text":"42","data":""}')

    async def test_nothing_is_no_output(self, execution: Execution) -> None:
        async def nothing(job: Job[Payload]) -> None:
            return None

        assert (await call(execution, nothing, "loop"))[0] == Completed(None)

    async def test_follow_ups_belong_to_the_outcome(self, execution: Execution) -> None:
        async def asks(job: Job[Payload]) -> None:
            job.follow_up(Payload(), delay=SECOND)

        outcome, _ = await call(execution, asks, "loop")
        assert isinstance(outcome, Completed)
        assert [one.delay for one in outcome.follow_ups] == [SECOND]

    async def test_a_timeout_cancels_and_the_slot_can_run_the_next(
        self, execution: Execution, flushing: None
    ) -> None:
        cancelled = asyncio.Event()

        async def sleeps(job: Job[Payload]) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        outcome, _ = await call(execution, sleeps, "loop", timeout=SECOND / 100)
        assert isinstance(outcome, Retry)
        assert outcome.failure.kind == "TimedOut"
        assert outcome.failure.message == "test.job did not end within 0.01 s"
        assert cancelled.is_set()
        # The same task goes on, and its own timeouts still work.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        assert not execution._deadlines
        assert not execution._overdue

    async def test_one_that_ends_orderly_when_cancelled_has_completed(
        self, execution: Execution, flushing: None
    ) -> None:
        async def yields(job: Job[Payload]) -> Answer:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            return Answer(text="partly")

        outcome, _ = await call(execution, yields, "loop", timeout=SECOND / 100)
        assert isinstance(outcome, Completed)
        assert not execution._overdue

    async def test_one_that_fails_while_it_is_cancelled_has_failed(
        self, execution: Execution, flushing: None, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("failed on attempt 1 with ValueError")

        async def stumbles(job: Job[Payload]) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                raise ValueError("while cleaning up")

        outcome, _ = await call(execution, stumbles, "loop", timeout=SECOND / 100)
        assert isinstance(outcome, Retry)
        assert outcome.failure.kind == "ValueError"

    async def test_a_cancellation_of_its_own_making_is_a_failure_and_not_the_end_of_the_slot(
        self, execution: Execution, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("failed on attempt 1 with asyncio.exceptions.CancelledError")

        async def waits_for_something_cancelled(job: Job[Payload]) -> None:
            inner = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner

        outcome, _ = await call(execution, waits_for_something_cancelled, "loop")
        assert isinstance(outcome, Retry)

    async def test_a_worker_that_closes_cancels_for_good(self, execution: Execution) -> None:
        started = asyncio.Event()

        async def sleeps(job: Job[Payload]) -> None:
            started.set()
            await asyncio.sleep(60)

        running = asyncio.create_task(call(execution, sleeps, "loop"))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not execution._deadlines

    async def test_a_worker_that_closes_just_when_the_time_is_up_cancels_for_good(
        self, execution: Execution
    ) -> None:
        started = asyncio.Event()

        async def sleeps(job: Job[Payload]) -> None:
            started.set()
            await asyncio.sleep(60)

        running = asyncio.create_task(call(execution, sleeps, "loop", timeout=timedelta(0)))
        await started.wait()
        execution.cancel_overdue()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def test_a_handler_cannot_exit_the_worker(
        self, execution: Execution, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("failed on attempt 1 with SystemExit")

        async def exits(job: Job[Payload]) -> None:
            raise SystemExit(3)

        outcome, _ = await call(execution, exits, "loop")
        assert isinstance(outcome, Retry)


class TestInAThread:
    async def test_its_cpu_time_is_measured(self, execution: Execution) -> None:
        def works(job: Job[Payload]) -> Answer:
            return Answer(text=str(sum(range(200_000))))

        outcome, attempt = await call(execution, works, "thread")
        assert isinstance(outcome, Completed)
        assert attempt.cpu_ms is not None
        assert 0 < attempt.cpu_ms < 20_000

    async def test_progress_is_reported_in_the_loop(self, execution: Execution) -> None:
        seen: list[tuple[float, str, int]] = []

        def reports(job: Job[Payload]) -> None:
            job.progress(0.25, "a quarter")
            job.progress(7, "n" * 10_000)
            job.progress(float("nan"))

        await call(
            execution,
            reports,
            "thread",
            report=lambda done, note: seen.append((done, note, threading.get_ident())),
        )
        assert seen == [
            (0.25, "a quarter", threading.get_ident()),
            (1.0, "n" * 500, threading.get_ident()),
            (0.0, "", threading.get_ident()),
        ]

    async def test_a_timeout_abandons_it_tells_it_and_keeps_no_exit_waiting(
        self, execution: Execution
    ) -> None:
        noticed, thread = threading.Event(), []

        def hangs(job: Job[Payload]) -> None:
            thread.append(threading.current_thread())
            assert job.cancel is not None
            assert not job.cancelled
            job.cancel.wait(20)
            if job.cancelled:
                noticed.set()

        outcome, _ = await call(execution, hangs, "thread", timeout=SECOND / 50)
        assert isinstance(outcome, Retry)
        assert outcome.failure.kind == "TimedOut"
        assert await asyncio.to_thread(noticed.wait, 5)
        assert thread[0].daemon, "the interpreter would wait for it when it exits"

    async def test_abandoned_ones_take_nobodys_place(self, execution: Execution) -> None:
        release = threading.Event()

        def hangs(job: Job[Payload]) -> None:
            release.wait(20)

        def works(job: Job[Payload]) -> Answer:
            return Answer(text="at once")

        try:
            hung = [call(execution, hangs, "thread", timeout=SECOND / 100) for _ in range(100)]
            assert all(isinstance(outcome, Retry) for outcome, _ in await asyncio.gather(*hung))
            outcome, _ = await call(execution, works, "thread", timeout=SECOND)
            assert isinstance(outcome, Completed)
        finally:
            release.set()

    async def test_a_worker_that_closes_tells_it(self, execution: Execution) -> None:
        started, noticed = threading.Event(), threading.Event()

        def waits(job: Job[Payload]) -> None:
            started.set()
            assert job.cancel is not None
            if job.cancel.wait(20):
                noticed.set()

        running = asyncio.create_task(call(execution, waits, "thread"))
        await asyncio.to_thread(started.wait, 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.to_thread(noticed.wait, 5)

    @pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(2)])
    async def test_whatever_it_raises_is_a_failure(
        self, execution: Execution, error: BaseException, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add(f"failed on attempt 1 with {type(error).__name__}")

        def raises(job: Job[Payload]) -> None:
            raise error

        outcome, _ = await call(execution, raises, "thread")
        assert isinstance(outcome, Retry)


class TestOutput:
    async def output(self, execution: Execution, result: Any) -> str | None:
        async def returns(job: Job[Payload]) -> Any:
            return result

        outcome, _ = await call(execution, returns, "loop")
        assert isinstance(outcome, Completed)
        return outcome.output

    async def test_what_is_too_large_is_told_by_its_length(self, execution: Execution) -> None:
        fits = Answer(text="x" * (OUTPUT_CAP - len('{"text":"","data":""}')))
        assert await self.output(execution, fits) == fits.model_dump_json()
        beyond = Answer(text="x" * OUTPUT_CAP)
        assert await self.output(execution, beyond) == f'{{"truncated":true,"length":{OUTPUT_CAP + 21}}}'

    async def test_lone_surrogates_do_not_undo_the_effect(self, execution: Execution) -> None:
        assert await self.output(execution, Answer.model_construct(text="a\ud800b")) == (
            '{"text": "a?b", "data": "b\'\'"}'
        )

    async def test_bytes_need_not_be_text(self, execution: Execution) -> None:
        assert await self.output(execution, Answer(data=b"\xff\xfe")) == '{"text":"","data":"__4="}'

    async def test_what_is_no_model_is_a_bug(
        self, execution: Execution, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("with TypeError")

        async def returns(job: Job[Payload]) -> dict[str, int]:
            return {"number": 1}

        outcome, _ = await call(execution, returns, "loop")
        assert isinstance(outcome, Retry)
        assert outcome.failure.message == "a handler returns a Result or None, not dict"


class TestJudge:
    @pytest.mark.parametrize("error", [Transient("later"), Unavailable("down"), ValueError("a bug")])
    def test_failures_are_retried_until_attempts_are_spent(
        self, error: Exception, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("with ValueError")
        one = handler(lambda job: None, "thread")
        for attempt in (1, 2):
            outcome = judge(delivery(handler=one, attempt=attempt), failed(error), 0.5)
            assert isinstance(outcome, Retry)
            assert outcome.delay == Backoff().delay(attempt, 0.5)
        for attempt in (3, 4, 1000):
            outcome = judge(delivery(handler=one, attempt=attempt), failed(error), 0.5)
            assert isinstance(outcome, DeadLetter)
            assert outcome.reason == "all 3 attempts failed"

    def test_only_bugs_are_logged_as_errors_and_without_their_message(
        self, caplog: pytest.LogCaptureFixture, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("failed on attempt 1 with ValueError")
        one = delivery(handler=handler(lambda job: None, "thread"))
        for error in (Transient("t"), Unavailable("u"), Poison("p"), Snooze("s", delay=SECOND)):
            judge(one, failed(error), 0.5)
        assert not caplog.records
        judge(one, failed(ValueError("card 4111 1111")), 0.5)
        (record,) = caplog.records
        assert "4111" not in record.getMessage()

    @pytest.mark.parametrize("error", [Poison("never"), Refused("never")])
    def test_poison_is_buried_on_its_first_attempt(self, error: Exception) -> None:
        outcome = judge(delivery(handler=handler(lambda job: None, "thread")), failed(error), 0.5)
        assert isinstance(outcome, DeadLetter)
        assert outcome.failure.message == "never"

    @pytest.mark.parametrize(
        ("asked", "given"),
        [
            (timedelta(0), timedelta(0)),
            (timedelta(seconds=-5), timedelta(0)),
            (timedelta(hours=3), timedelta(hours=3)),
            (timedelta.max, LONGEST_DELAY),
        ],
    )
    def test_a_named_delay_overrides_the_backoff_within_reason(
        self, asked: timedelta, given: timedelta
    ) -> None:
        one = delivery(handler=handler(lambda job: None, "thread"))
        for error in (Transient("t", delay=asked), Snooze("s", delay=asked), RateLimited("r", asked)):
            outcome = judge(one, failed(error), 0.5)
            assert isinstance(outcome, Retry | Snoozed)
            assert outcome.delay == given

    def test_a_snooze_spends_no_attempt_even_on_the_last(self) -> None:
        one = delivery(handler=handler(lambda job: None, "thread"), attempt=3)
        assert isinstance(judge(one, failed(Snooze("s", delay=SECOND)), 0.5), Snoozed)

    @pytest.mark.parametrize("kind", [Transient, Snooze])
    def test_a_delay_that_is_no_duration_is_a_bug_where_it_is_made(self, kind: Any) -> None:
        with pytest.raises(TypeError, match="timedelta"):
            kind("later", delay=5)


class NotAResult(BaseModel):
    """Handlers may return any model."""

    number: int


async def test_any_model_will_do_as_a_result(execution: Execution) -> None:
    async def returns(job: Job[Payload]) -> NotAResult:
        return NotAResult(number=1)

    assert (await call(execution, returns, "loop"))[0] == Completed('{"number":1}')
