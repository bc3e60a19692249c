"""What an attempt came to: a closed set, matched in one place (`streams.settle`)."""

import hashlib
import traceback
from dataclasses import dataclass
from datetime import timedelta

from streams.jobs import FollowUp

MESSAGE_CAP = 2_000
STACK_CAP = 8_000


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong: the exception's class, its message and stack, capped, and never a local variable."""

    kind: str
    message: str
    stack: str | None
    fingerprint: str
    """The same for errors of one kind raised at one place."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        trace = traceback.TracebackException.from_exception(error, compact=True)
        place = f"{trace.stack[-1].filename}:{trace.stack[-1].name}" if trace.stack else ""
        stack = "".join(trace.format())
        return cls(
            kind,
            clean(_message(error), MESSAGE_CAP),
            clean(stack[-STACK_CAP:], STACK_CAP),
            _fingerprint(kind, place),
        )

    @classmethod
    def named(cls, kind: str, message: str) -> "Failure":
        """Return a failure that no exception stands for."""
        return cls(kind, clean(message, MESSAGE_CAP), None, _fingerprint(kind, ""))


def clean(text: str, cap: int) -> str:
    """Return at most `cap` characters of a text, lone surrogates replaced: no encoding carries them."""
    return text[:cap].encode("utf-8", "replace").decode()


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - any code may stand behind str(), and a failure is told all the same
        return f"(its message cannot be shown: {type(broken).__name__})"


def _fingerprint(kind: str, place: str) -> str:
    return hashlib.sha256(f"{kind}@{place}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one call of a handler, in whatever process it ran."""

    output: str | None = None
    follow_ups: tuple[FollowUp, ...] = ()
    error: BaseException | None = None
    failure: Failure | None = None
    cpu_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    output: str | None
    """JSON of the handler's result."""
    follow_ups: tuple[FollowUp, ...] = ()


@dataclass(frozen=True, slots=True)
class Retry:
    delay: timedelta
    failure: Failure


@dataclass(frozen=True, slots=True)
class Snoozed:
    delay: timedelta
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    reason: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancelled:
    by: str
    told: bool = False
    """Whether whoever cancelled the job has written the event."""


Outcome = Completed | Retry | Snoozed | DeadLetter | Cancelled
