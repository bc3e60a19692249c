"""Run one attempt: call the handler where it runs, bounded in time, and say what it came to."""

import asyncio
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as PoolTimeout
from dataclasses import replace
from datetime import timedelta
from typing import Any

from pebble import ProcessExpired, ProcessPool
from pydantic import BaseModel

from providers.errors import RateLimited, Refused, Unavailable
from streams.delivery import Delivery
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Handler, Job
from streams.outcome import Attempt, Completed, DeadLetter, Failure, Outcome, Retry, Snoozed

log = logging.getLogger(__name__)

OUTPUT_CAP = 16_000
"""Bytes of JSON that are kept of an output."""


class Execution:
    """Calls handlers for one worker: in its loop, in threads, or in processes that can be killed."""

    def __init__(self, *, process_count: int, modules: tuple[str, ...] = ()) -> None:
        self._process_count = process_count
        self._modules = modules
        self._threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="handler")
        self._processes: ProcessPool | None = None
        self._reports: Any = None
        self._listeners: dict[str, Callable[[float, str], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()

    async def run(
        self, delivery: Delivery, job: Job[Any], call: asyncio.Task[Any]
    ) -> tuple[Outcome, Attempt]:
        """Call the handler once, in the task `call`, and return the outcome with what was measured."""
        handler = delivery.handler
        if handler.runs_in == "loop":
            attempt = await self._in_loop(handler, job, call)
        elif handler.runs_in == "thread":
            attempt = await self._in_thread(handler, job)
        else:
            attempt = await self._in_process(handler, job)
        return judge(delivery, attempt, random.random()), attempt

    async def _in_loop(self, handler: Handler, job: Job[Any], call: asyncio.Task[Any]) -> Attempt:
        self._deadlines[call] = time.monotonic() + handler.timeout.total_seconds()
        try:
            return _ended(job, await handler.function(job))
        except asyncio.CancelledError:
            if call not in self._overdue:
                raise
            call.uncancel()
            return _timed_out(handler)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is an outcome
            return Attempt(error=error, failure=Failure.of(error))
        finally:
            del self._deadlines[call]
            self._overdue.discard(call)

    def cancel_overdue(self) -> None:
        """Cancel handlers in the loop that are past their timeout; a timer of its own for each would cost more."""
        now = time.monotonic()
        for call, deadline in self._deadlines.items():
            if deadline <= now and call not in self._overdue:
                self._overdue.add(call)
                call.cancel()

    async def _in_thread(self, handler: Handler, job: Job[Any]) -> Attempt:
        """A thread cannot be killed: at the timeout it is told through `job.cancelled` and left to itself."""
        job.cancel = threading.Event()
        loop = asyncio.get_running_loop()
        report = job.report
        if report is not None:

            def from_thread(done: float, note: str) -> None:
                loop.call_soon_threadsafe(report, done, note)

            job.report = from_thread
        running = loop.run_in_executor(self._threads, call_in_thread, handler, job)
        done, _ = await asyncio.wait({running}, timeout=handler.timeout.total_seconds())
        if done:
            return running.result()
        job.cancel.set()
        return _timed_out(handler)

    async def _in_process(self, handler: Handler, job: Job[Any]) -> Attempt:
        pool = self._pool()
        if job.report is not None:
            self._listeners[job.id] = job.report
            job.report = None
        future = pool.schedule(call_in_process, args=(handler, job), timeout=handler.timeout.total_seconds())
        try:
            result: Attempt = await asyncio.wrap_future(future)
        except (TimeoutError, PoolTimeout):
            return _timed_out(handler)
        except ProcessExpired as error:
            message = f"the handler's process ended with exit code {error.exitcode}"
            return Attempt(error=error, failure=Failure.named("ProcessExpired", message))
        finally:
            self._listeners.pop(job.id, None)
        return result

    def _pool(self) -> ProcessPool:
        if self._processes is None:
            # fork would copy the locks of librdkafka's and the consumer's threads in whatever state they are.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["streams.jobs", *self._modules])
            self._loop = asyncio.get_running_loop()
            self._reports = context.SimpleQueue()
            threading.Thread(target=self._listen, name="progress", daemon=True).start()
            self._processes = ProcessPool(
                max_workers=self._process_count,
                context=context,
                initializer=_start_process,
                initargs=(self._reports, os.getpid()),
            )
        return self._processes

    def _listen(self) -> None:
        assert self._loop is not None
        for job_id, done, note in iter(self._reports.get, None):
            listener = self._listeners.get(job_id)
            if listener is not None:
                self._loop.call_soon_threadsafe(listener, done, note)

    def close(self) -> None:
        """End the processes at once and abandon the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.stop()  # type: ignore[no-untyped-call]
            self._processes.join(timeout=5)
            self._reports.put(None)


def call_in_thread(handler: Handler, job: Job[Any]) -> Attempt:
    """Call a plain function and return what came of it with the CPU time of its thread."""
    started = time.thread_time()
    try:
        ended = _ended(job, handler.function(job))
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is an outcome
        ended = Attempt(error=error, failure=Failure.of(error))
    return replace(ended, cpu_ms=(time.thread_time() - started) * 1000)


_reports: Any = None


def _start_process(reports: Any, parent: int) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A killed worker's children must not go on with jobs whose leases another worker will take over.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
        if os.getppid() == 1:
            os._exit(1)


def call_in_process(handler: Handler, job: Job[Any]) -> Attempt:
    """Call a plain function in this process; every part of what is returned can be pickled."""
    job.report = lambda done, note: _reports.put((job.id, done, note))
    before = resource.getrusage(resource.RUSAGE_SELF)
    attempt = call_in_thread(handler, job)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
    error = attempt.error
    if error is not None and not isinstance(error, _OUTCOMES):
        error = RuntimeError(str(error))
    return replace(attempt, error=error, cpu_ms=cpu_ms, memory_bytes=after.ru_maxrss * 1024)


_OUTCOMES = (Transient, Snooze, Poison, Unavailable, RateLimited, Refused)


def _ended(job: Job[Any], result: Any) -> Attempt:
    if result is None:
        return Attempt(None, tuple(job.follow_ups))
    if not isinstance(result, BaseModel):
        raise TypeError(f"a handler returns a Result or None, not {type(result).__name__}")
    output = result.model_dump_json(by_alias=True)
    if len(output) > OUTPUT_CAP:
        output = f'{{"truncated":true,"length":{len(output)}}}'
    return Attempt(output, tuple(job.follow_ups))


def _timed_out(handler: Handler) -> Attempt:
    message = f"{handler.job_type} did not end within {handler.timeout.total_seconds():g} s"
    return Attempt(error=Transient(message), failure=Failure.named("TimedOut", message))


def judge(delivery: Delivery, attempt: Attempt, jitter: float) -> Outcome:
    """Return the outcome of an attempt; `jitter` is a random number in [0, 1)."""
    error, failure = attempt.error, attempt.failure
    if error is None or failure is None:
        return Completed(attempt.output, attempt.follow_ups)
    delay: timedelta | None = None
    match error:
        case Snooze():
            return Snoozed(error.delay, str(error))
        case RateLimited():
            return Snoozed(error.retry_after, str(error))
        case Poison() | Refused():
            return DeadLetter("poison", failure)
        case Transient():
            delay = error.delay
        case Unavailable():
            pass
        case _:
            log.error(
                "%s %s of %s failed on attempt %d with %s (fingerprint %s)",
                delivery.handler.job_type, delivery.job_id, delivery.organization_id, delivery.attempt,
                failure.kind, failure.fingerprint,
            )  # fmt: skip
    if delivery.attempt >= delivery.max_attempts:
        return DeadLetter(f"all {delivery.max_attempts} attempts failed", failure)
    return Retry(delay or delivery.handler.backoff.delay(delivery.attempt, jitter), failure)
