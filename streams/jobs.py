"""What the author of a handler uses: payloads, jobs, and the decorator that gives a job type its handler.

A handler is plain code. It returns its result or raises one of `streams.errors.JobError`; anything else it
raises counts as a bug and is retried.
"""

import inspect
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from streams.backoff import Backoff
from streams.errors import ConfigError
from streams.queues import QUEUES, Queue

RunsIn = Literal["loop", "thread", "process"]
Ordering = Literal["none", "key"]
OnRetry = Literal["block", "pass"]

NOTE_CAP = 500

PROVIDER = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class Payload(BaseModel):
    """The input of one job type: a frozen record, camelCase on the wire, unknown fields refused.

    Field types are those Avro has: str, int, float, bool, bytes, datetime, lists, `dict[str, ...]`, enums,
    optionals, and nested payloads. Fields made with `secret()` reach the handler but no event, row or log.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        # For events: bytes need not be UTF-8.
        ser_json_bytes="base64",
    )


def secret(default: Any = ..., **options: Any) -> Any:
    """Declare a payload field that is kept out of events, rows and logs."""
    return Field(default, json_schema_extra={"secret": True}, repr=False, **options)


@cache
def secret_fields(payload: type[Payload]) -> set[str]:
    """Return the names of a payload's secret fields."""
    return {
        name
        for name, info in payload.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("secret")
    }


class Result(BaseModel):
    """The output of one job type; kept with the job's execution, so small and without secrets."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, ser_json_bytes="base64"
    )


P = TypeVar("P", bound=Payload)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A job that another one asks for; it is published when, and only when, that one completes."""

    payload: Payload
    delay: timedelta | None = None


@dataclass(slots=True)
class Job(Generic[P]):
    """One attempt at a job, as its handler sees it."""

    id: str
    type: str
    organization_id: str
    payload: P
    attempt: int
    max_attempts: int
    queued_at: datetime
    idempotency_key: str
    """The same on every attempt: pass it on to whatever carries out the effect."""
    follow_ups: list[FollowUp] = field(default_factory=list)
    report: Callable[[float, str], None] | None = None
    cancel: threading.Event | None = None

    def progress(self, fraction: float, note: str = "") -> None:
        """Report how far the job is, 0 to 1; written as a `progressed` event, at most one per flush.

        A note is cut after NOTE_CAP characters.
        """
        if self.report is not None:
            # In this order, NaN becomes 0.
            self.report(min(max(0.0, float(fraction)), 1.0), str(note)[:NOTE_CAP])

    def follow_up(self, payload: Payload, *, delay: timedelta | None = None) -> None:
        """Publish another job of the same organization when this one completes; once, even if this one repeats."""
        self.follow_ups.append(FollowUp(payload, delay))

    @property
    def cancelled(self) -> bool:
        """Return whether the job should stop where it is: its time is up or its worker is leaving."""
        return self.cancel is not None and self.cancel.is_set()


@dataclass(frozen=True, slots=True)
class Handler:
    """How one job type is run."""

    job_type: str
    queue: Queue
    function: Callable[[Job[Any]], Any]
    payload: type[Payload]
    timeout: timedelta
    max_attempts: int
    runs_in: RunsIn
    backoff: Backoff
    cost: int
    provider: str | None = None
    """The outside system that it calls; what that one limits, it limits for all its job types."""
    ordering: Ordering = "none"
    on_retry: OnRetry = "block"


HANDLERS: dict[str, Handler] = {}
"""Job type to its handler, for every module imported so far; `streams.agents.load()` imports them all."""

TYPE_OF_PAYLOAD: dict[type[Payload], str] = {}

F = TypeVar("F", bound=Callable[..., Any])


def handles(
    queue: Queue,
    job_type: str,
    *,
    timeout: timedelta,
    max_attempts: int = 5,
    runs_in: RunsIn | None = None,
    backoff: Backoff | None = None,
    cost: int = 1,
    provider: str | None = None,
    ordering: Ordering = "none",
    on_retry: OnRetry = "block",
) -> Callable[[F], F]:
    """Register the decorated function as the handler of a job type.

    The function takes one `Job[SomePayload]`. `async def` runs in the loop, `def` in a thread, or with
    `runs_in="process"` in a process that is killed at its timeout. `provider` names the outside system it calls: its
    limits hold for all job types that name it, and its 429 stops all of them for a while. With `ordering="key"` the
    jobs of one organization with one `orderingKey` run one at a time in the order of publication; while one waits
    for its next attempt, `on_retry` says whether those behind it wait (`block`) or go on (`pass`). Raises ConfigError
    when the signature, the queue, the type or the provider does not fit.
    """

    def register(function: F) -> F:
        payload = _payload_of(job_type, function)
        is_async = inspect.iscoroutinefunction(function)
        where: RunsIn = runs_in or ("loop" if is_async else "thread")
        if is_async != (where == "loop"):
            raise ConfigError(f"{job_type}: 'async def' runs in the loop and only there, not in {where!r}")
        if QUEUES.get(queue.name) != queue:
            raise ConfigError(f"{job_type}: unknown queue {queue.name!r}; expected one of {sorted(QUEUES)}")
        if cost < 1 or (queue.limit is not None and cost > queue.limit.count):
            most = queue.limit.count if queue.limit else "any"
            raise ConfigError(
                f"{job_type}: cost must be 1 to the {most} that {queue.name} allows, got {cost}"
            )
        if job_type in HANDLERS and HANDLERS[job_type].function is not function:
            raise ConfigError(
                f"{job_type} already has a handler, in {HANDLERS[job_type].function.__module__}"
            )
        if payload in TYPE_OF_PAYLOAD:
            raise ConfigError(f"{payload.__name__} already belongs to {TYPE_OF_PAYLOAD[payload]}")
        if provider is not None and PROVIDER.fullmatch(provider) is None:
            raise ConfigError(f"{job_type}: a provider is named like azure-ocr, got {provider!r}")
        HANDLERS[job_type] = Handler(
            job_type, queue, function, payload, timeout, max_attempts, where, backoff or Backoff(), cost,
            provider, ordering, on_retry,
        )  # fmt: skip
        TYPE_OF_PAYLOAD[payload] = job_type
        return function

    return register


def _payload_of(job_type: str, function: Callable[..., Any]) -> type[Payload]:
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    annotation = parameters[0].annotation if len(parameters) == 1 else None
    (payload,) = get_args(annotation) or (None,)
    if get_origin(annotation) is not Job or not (isinstance(payload, type) and issubclass(payload, Payload)):
        raise ConfigError(
            f"the handler of {job_type} must take one argument annotated Job[<a Payload>], got {annotation!r}"
        )
    return payload
