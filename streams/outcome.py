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
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].name}" if frames else ""
        stack = "".join(traceback.format_exception(error))
        return cls(
            kind, _clean(str(error)[:MESSAGE_CAP]), _clean(stack[-STACK_CAP:]), _fingerprint(kind, place)
        )

    @classmethod
    def named(cls, kind: str, message: str) -> "Failure":
        """Return a failure that no exception stands for."""
        return cls(kind, _clean(message[:MESSAGE_CAP]), None, _fingerprint(kind, ""))


def _clean(text: str) -> str:
    """Return the text without lone surrogates, which no encoding carries."""
    return text.encode("utf-8", "replace").decode()


def _fingerprint(kind: str, place: str) -> str:
    return hashlib.sha256(f"{kind}@{place}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one call of a handler, in whatever process it ran."""

    output: str | None = None
    follow_ups: tuple[FollowUp, ...] = ()
    error: Exception | None = None
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


Outcome = Completed | Retry | Snoozed | DeadLetter | Cancelled
