"""Attempts in processes of their own: killed, exiting, failing, and what comes back from them."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from pebble import ProcessPool
from pebble.pool.process import WorkerManager

from streams.execution import Execution
from streams.outcome import Attempt, Completed, DeadLetter, Outcome, Retry, Snoozed
from tests.conftest import ExpectedErrors
from tests.deliveries import attempted, handler, job
from tests.in_process import Input, run
from tests.rig import eventually

SECOND = timedelta(seconds=1)


@pytest.fixture
async def execution() -> AsyncIterator[Execution]:
    execution = Execution(process_count=1)
    yield execution
    await execution.close()


async def in_process(execution: Execution, what: str, **options: Any) -> tuple[Outcome, Attempt]:
    payload = Input(what=what, number=options.pop("number", 0), text=options.pop("text", ""))
    handled = handler(run, "process", options.pop("timeout", 20 * SECOND))
    return await attempted(execution, handled, job(payload, **options))


async def begun(execution: Execution, until: Path, **options: Any) -> asyncio.Task[tuple[Outcome, Attempt]]:
    """Return an attempt that runs until there is a file, once it has begun and the pool knows."""
    began = asyncio.Event()
    attempt = in_process(execution, "wait", text=str(until), report=lambda *_: began.set(), **options)
    running = asyncio.create_task(attempt)
    await began.wait()
    pool = execution._processes
    assert pool is not None
    await eventually(lambda: all(task.started for task in pool._pool_manager.task_manager.tasks.values()))
    return running


async def test_it_runs_elsewhere_and_is_measured(execution: Execution) -> None:
    outcome, attempt = await in_process(execution, "pid")
    assert isinstance(outcome, Completed)
    assert outcome.output is not None
    assert str(psutil.Process().pid) not in outcome.output
    assert attempt.memory_bytes is not None
    assert attempt.memory_bytes > 1_000_000
    assert attempt.cpu_ms is not None


async def test_the_loop_goes_on_while_the_first_process_starts(
    execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, start = threading.Event(), ProcessPool._start_pool

    def slow_start(pool: ProcessPool) -> None:
        assert goes_on.wait(10), "the loop waited for the process"
        start(pool)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(ProcessPool, "_start_pool", slow_start)
    asyncio.get_running_loop().call_later(0.05, goes_on.set)
    assert isinstance((await in_process(execution, "pid"))[0], Completed)


async def test_output_follow_ups_and_progress_come_back(execution: Execution) -> None:
    seen: asyncio.Queue[tuple[float, str]] = asyncio.Queue()
    outcome, _ = await in_process(
        execution, "succeed", number=7, text="é", report=lambda done, note: seen.put_nowait((done, note))
    )
    assert isinstance(outcome, Completed)
    assert outcome.output == '{"number":7,"text":"é"}'
    assert [one.payload for one in outcome.follow_ups] == [Input(what="next", number=7)]


async def test_progress_reaches_the_job_that_made_it_though_two_have_one_id() -> None:
    execution = Execution(process_count=2)
    seen: dict[str, list[str]] = {"acme": [], "globex": []}
    try:
        await asyncio.gather(
            *(
                in_process(
                    execution, "succeed", id="same", text=name,
                    report=lambda done, note, name=name: seen[name].append(note),
                )
                for name in seen
            )
        )  # fmt: skip
    finally:
        await execution.close()
    assert all(set(notes) <= {name} for name, notes in seen.items())
    assert not execution._listeners


@pytest.mark.parametrize("number", [1, 70])
async def test_an_exit_code_is_a_retry(
    execution: Execution, number: int, expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("failed on attempt 1 with ProcessExpired")
    outcome, _ = await in_process(execution, "end", number=number)
    assert isinstance(outcome, Retry)
    assert outcome.failure.message == f"the handler's process ended with exit code {number}"
    assert isinstance((await in_process(execution, "succeed"))[0], Completed)


async def test_a_killed_process_is_a_retry(execution: Execution, expected_errors: ExpectedErrors) -> None:
    expected_errors.add("ProcessExpired")
    outcome, _ = await in_process(execution, "killed")
    assert isinstance(outcome, Retry)
    assert "exit code -9" in outcome.failure.message


async def test_sys_exit_is_a_failure_like_any(execution: Execution, expected_errors: ExpectedErrors) -> None:
    expected_errors.add("SystemExit")
    assert isinstance((await in_process(execution, "exit", number=3))[0], Retry)


async def test_it_is_killed_at_its_timeout(execution: Execution) -> None:
    await in_process(execution, "pid")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    outcome, _ = await in_process(execution, "sleep", number=60_000, timeout=SECOND / 5)
    assert isinstance(outcome, Retry)
    assert outcome.failure.kind == "TimedOut"
    assert before - {child.pid for child in psutil.Process().children(recursive=True)}, "nobody was killed"
    assert isinstance((await in_process(execution, "succeed"))[0], Completed)


async def test_what_ends_before_it_could_be_killed_has_ended(
    execution: Execution, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, ends = threading.Event(), tmp_path / "ends"

    def is_not_killed_yet(manager: WorkerManager, worker_id: int) -> bool:
        asked.set()
        return False

    monkeypatch.setattr(WorkerManager, "maybe_stop_worker", is_not_killed_yet)
    running = await begun(execution, ends, number=7)
    running.cancel()
    assert await asyncio.to_thread(asked.wait, 10)
    ends.touch()
    outcome, _ = await running
    assert outcome == Completed('{"number":7,"text":""}', ())


async def test_what_is_killed_when_its_worker_closes_has_no_outcome(
    execution: Execution, tmp_path: Path
) -> None:
    running = await begun(execution, tmp_path / "never")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("transient", Retry),
        ("snooze", Snoozed),
        ("limited", Snoozed),
        ("unavailable", Retry),
        ("refused", DeadLetter),
        ("poison", DeadLetter),
        ("bug", Retry),
        ("odd", Retry),
        ("unpicklable", DeadLetter),
    ],
)
async def test_errors_mean_there_what_they_mean_here(
    execution: Execution, what: str, expected: type[Outcome], expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("with KeyError")
    outcome, attempt = await in_process(execution, what, text="why")
    assert isinstance(outcome, expected)
    assert attempt.failure is not None
    assert attempt.failure.stack is not None
    assert "in_process.py" in attempt.failure.stack
    delays = {"transient": 3, "snooze": 4, "limited": 5, "odd": 7}
    if what in delays:
        assert isinstance(outcome, Retry | Snoozed)
        assert outcome.delay == delays[what] * SECOND


async def test_the_death_of_an_idle_process_is_no_jobs_failure(
    execution: Execution, expected_errors: ExpectedErrors
) -> None:
    expected_errors.add("the pool of processes broke; a new one takes its place")
    outcome, _ = await in_process(execution, "pid")
    assert isinstance(outcome, Completed)
    assert outcome.output is not None
    idle = psutil.Process(int(outcome.output.split(":")[1].split(",")[0]))
    idle.kill()
    pool = execution._processes
    assert pool is not None
    _, noticing, _ = pool._loops
    await asyncio.to_thread(noticing.join, 10)
    outcome, _ = await in_process(execution, "succeed")
    assert isinstance(outcome, Completed)
    assert execution._processes is not pool


async def test_closing_leaves_no_process_behind() -> None:
    execution = Execution(process_count=2)
    outcome, _ = await in_process(execution, "pid")
    assert isinstance(outcome, Completed)
    assert outcome.output is not None
    pid = int(outcome.output.split(":")[1].split(",")[0])
    running = asyncio.create_task(in_process(execution, "sleep", number=60_000))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await execution.close()
    assert not psutil.pid_exists(pid)
