"""Run one attempt: call the handler where it runs, bounded in time, and say what it came to."""

import asyncio
import itertools
import json
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
from concurrent.futures import TimeoutError as PoolTimeout
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, cast

from pebble import ProcessExpired, ProcessFuture, ProcessPool
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from providers.errors import RateLimited, Refused, Unavailable
from streams.delivery import Delivery
from streams.errors import Poison, Snooze, Transient
from streams.jobs import Handler, Job
from streams.outcome import Attempt, Cancelled, Completed, DeadLetter, Failure, Outcome, Retry, Snoozed, clean

log = logging.getLogger(__name__)

OUTPUT_CAP = 16_000
"""Characters of JSON that are kept of an output."""

LONGEST_DELAY = timedelta(days=366)
"""A handler or a provider may ask for more; it is not given."""


class Execution:
    """Calls handlers for one worker: in its loop, in threads, or in processes that can be killed."""

    def __init__(self, *, process_count: int, modules: tuple[str, ...] = ()) -> None:
        self._process_count = process_count
        self.processes = asyncio.Semaphore(process_count)
        """One place for each process: a job takes one before it starts."""
        self._modules = modules
        self._processes: ProcessPool | None = None
        self._reports: tuple[Connection, Connection] | None = None
        self._listeners: dict[int, Callable[[float, str], None]] = {}
        self._tickets = itertools.count()
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._stopped: dict[asyncio.Task[Any], Cancelled | None] = {}

    async def run(
        self, delivery: Delivery, job: Job[Any], call: asyncio.Task[Any]
    ) -> tuple[Outcome | None, Attempt]:
        """Call the handler once, in the task `call`, and return the outcome with what was measured.

        The outcome is what `stop` said when that came first.
        """
        handler = delivery.handler
        try:
            if handler.runs_in == "loop":
                attempt = await self._in_loop(handler, job, call)
            elif handler.runs_in == "thread":
                attempt = await self._in_thread(handler, job)
            else:
                attempt = await self._in_process(handler, job)
        except asyncio.CancelledError as error:
            if call not in self._stopped:
                raise
            attempt = failed(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises is an outcome
            attempt = failed(error)
        if call in self._stopped:
            instead = self._stopped.pop(call)
            call.uncancel()
            if instead is None or attempt.error is not None:
                return instead, attempt
        return judge(delivery, attempt, random.random()), attempt

    def stop(self, call: asyncio.Task[Any], instead: Cancelled | None) -> None:
        """End the run in `call` soon: in the loop it is cancelled, a process is killed, a thread is told and left.

        Its outcome is then `instead`; a handler that completes all the same has completed, unless that is None:
        then its lease was lost, and another worker says what became of the job.
        """
        if call not in self._stopped:
            call.cancel()
        self._stopped[call] = instead

    async def _in_loop(self, handler: Handler, job: Job[Any], call: asyncio.Task[Any]) -> Attempt:
        self._deadlines[call] = time.monotonic() + handler.timeout.total_seconds()
        try:
            return _ended(job, await handler.function(job))
        except asyncio.CancelledError as error:
            asked = call.cancelling()
            if asked == 0:
                # Nobody meant this call: the handler waited for something that was cancelled.
                return failed(error)
            if call not in self._overdue or asked > 1:
                raise
            return _timed_out(handler)
        finally:
            del self._deadlines[call]
            if call in self._overdue:
                self._overdue.remove(call)
                call.uncancel()

    def cancel_overdue(self) -> None:
        """Cancel handlers in the loop that are past their timeout; a timer of its own for each would cost more."""
        now = time.monotonic()
        for call, deadline in self._deadlines.items():
            if deadline <= now and call not in self._overdue:
                self._overdue.add(call)
                call.cancel()

    async def _in_thread(self, handler: Handler, job: Job[Any]) -> Attempt:
        """A thread cannot be killed: at the timeout it is told through `job.cancelled` and left to itself.

        So it is a daemon of its own and no member of a pool: it takes nobody's place and holds up no exit.
        """
        told = job.cancel = threading.Event()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Attempt] = loop.create_future()
        report = job.report
        if report is not None:
            job.report = lambda done, note: _in(loop, report, done, note)

        def call() -> None:
            attempt = call_in_thread(handler, job)
            _in(loop, lambda: None if ended.done() else ended.set_result(attempt))

        threading.Thread(target=call, name=f"handler {job.type} {job.id}", daemon=True).start()
        try:
            async with asyncio.timeout(handler.timeout.total_seconds()):
                return await ended
        except TimeoutError:
            return _timed_out(handler)
        finally:
            told.set()

    async def _in_process(self, handler: Handler, job: Job[Any]) -> Attempt:
        ticket = next(self._tickets)
        if job.report is not None:
            self._listeners[ticket] = job.report
            job.report = None
        time_limit = _TimeLimit(handler.timeout)
        try:
            ended = await self._schedule(handler, job, ticket, time_limit)
            attempt = await _back(ended, time_limit)
        except (TimeoutError, PoolTimeout):
            return _timed_out(handler)
        except ProcessExpired as error:
            message = f"the handler's process ended with exit code {error.exitcode}"
            return Attempt(error=error, failure=Failure.named("ProcessExpired", message))
        finally:
            self._listeners.pop(ticket, None)
        return attempt

    async def _schedule(
        self, handler: Handler, job: Job[Any], ticket: int, time_limit: "_TimeLimit"
    ) -> ProcessFuture[Attempt]:
        """Hand a call to the pool, or to a new one: the death of an idle process breaks a pool for good."""
        timeout = cast(float, time_limit)
        arguments = (handler, job, ticket)
        pool = await self._started()
        try:
            return pool.schedule(call_in_process, args=arguments, timeout=timeout)
        except RuntimeError:
            if self._processes is pool:
                self._processes = None
                log.exception("the pool of processes broke; a new one takes its place")
                threading.Thread(target=_end, args=(pool,), name="broken pool", daemon=True).start()
            return (await self._started()).schedule(call_in_process, args=arguments, timeout=timeout)

    async def _started(self) -> ProcessPool:
        pool = self._pool()
        # It starts when it is first asked anything, and waits until the server that forks has imported all handlers.
        await asyncio.to_thread(lambda: pool.active)
        return pool

    def _pool(self) -> ProcessPool:
        if self._processes is None:
            # fork would copy the locks of librdkafka's and the consumer's threads in whatever state they are.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["streams.jobs", *self._modules])
            if self._reports is None:
                self._reports = context.Pipe(duplex=False)
                listen = (self._reports[0], asyncio.get_running_loop())
                threading.Thread(target=self._listen, args=listen, name="progress", daemon=True).start()
            self._processes = ProcessPool(
                max_workers=self._process_count,
                context=context,
                initializer=_start_process,
                initargs=(self._reports[1],),
            )
        return self._processes

    def _listen(self, reports: Connection, loop: asyncio.AbstractEventLoop) -> None:
        for ticket, done, note in iter(reports.recv, None):
            listener = self._listeners.get(ticket)
            if listener is not None:
                _in(loop, listener, done, note)

    async def close(self) -> None:
        """End the processes at once and abandon the threads."""
        if self._processes is not None:
            await asyncio.to_thread(_end, self._processes)
        if self._reports is not None:
            self._reports[1].send(None)


class _TimeLimit:
    """What the pool compares the seconds of a call with; `is_up` ends it like one that ran for too long.

    A future of the pool that is cancelled forgets what its call has come to, though that may end in the tenth of a
    second until its process is killed.
    """

    def __init__(self, limit: timedelta) -> None:
        self._limit_s = limit.total_seconds()
        self.is_up = False

    def __lt__(self, seconds: float) -> bool:
        return self.is_up or self._limit_s < seconds


async def _back(call: ProcessFuture[Attempt], time_limit: _TimeLimit) -> Attempt:
    """Wait for a call in a process; when cancelled, return what it has come to before it could be killed."""
    ended = asyncio.wrap_future(call)
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        if not (call.running() or call.done()):
            ended.cancel()  # it has not begun, as far as the pool knows
        time_limit.is_up = True
        with suppress(TimeoutError, PoolTimeout, ProcessExpired):
            return await ended
        raise


def _in(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in the loop, from a thread that may outlive it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _end(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def call_in_thread(handler: Handler, job: Job[Any]) -> Attempt:
    """Call a plain function and return what came of it with the CPU time of its thread."""
    started = time.thread_time()
    try:
        ended = _ended(job, handler.function(job))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises is an outcome
        ended = failed(error)
    return replace(ended, cpu_ms=(time.thread_time() - started) * 1000)


_reports: Connection | None = None


def _start_process(reports: Connection) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A killed worker's children must not go on with jobs whose leases another worker will take over.
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
        if os.getppid() == 1:
            os._exit(1)


def call_in_process(handler: Handler, job: Job[Any], ticket: int) -> Attempt:
    """Call a plain function in this process; every part of what is returned can be pickled."""

    def report(done: float, note: str) -> None:
        # Less than PIPE_BUF, so it is written in one piece: no lock that a killed process would keep.
        assert _reports is not None
        _reports.send((ticket, done, note))

    job.report = report
    before = resource.getrusage(resource.RUSAGE_SELF)
    attempt = call_in_thread(handler, job)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
    error, failure = attempt.error, attempt.failure
    if error is not None and failure is not None:
        error = _portable(error, failure.message)
    return replace(attempt, error=error, cpu_ms=cpu_ms, memory_bytes=after.ru_maxrss * 1024)


def _portable(error: BaseException, message: str) -> Exception:
    """Return an error that judges the same and can be unpickled, whatever a handler derived its own from."""
    match error:
        case Transient():
            return Transient(message, delay=error.delay)
        case Snooze():
            return Snooze(message, delay=error.delay)
        case RateLimited():
            return RateLimited(message, error.retry_after)
        case Poison() | Refused():
            return Poison(message)
        case Unavailable():
            return Unavailable(message, host=error.host)
        case _:
            return RuntimeError(message)


def failed(error: BaseException) -> Attempt:
    """Return the attempt that ended with an error."""
    return Attempt(error=error, failure=Failure.of(error))


def _ended(job: Job[Any], result: Any) -> Attempt:
    if result is None:
        return Attempt(None, tuple(job.follow_ups))
    if not isinstance(result, BaseModel):
        raise TypeError(f"a handler returns a Result or None, not {type(result).__name__}")
    output = _json(result)
    if len(output) > OUTPUT_CAP:
        output = f'{{"truncated":true,"length":{len(output)}}}'
    return Attempt(output, tuple(job.follow_ups))


def _json(result: BaseModel) -> str:
    try:
        return result.model_dump_json(by_alias=True)
    except PydanticSerializationError:
        # A lone surrogate or odd bytes; the effect is there, so the job has not failed.
        text = json.dumps(result.model_dump(by_alias=True), default=str, ensure_ascii=False)
        return clean(text, len(text))


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
            return Snoozed(_bounded(error.delay), failure.message)
        case RateLimited():
            return Snoozed(_bounded(error.retry_after), failure.message)
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
    if delay is None:
        delay = delivery.handler.backoff.delay(delivery.attempt, jitter)
    return Retry(_bounded(delay), failure)


def _bounded(delay: timedelta) -> timedelta:
    return min(max(delay, timedelta(0)), LONGEST_DELAY)
