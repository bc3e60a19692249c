"""Every error this package raises on purpose.

StreamsError
├── ConfigError          a setting is wrong; says what was expected and what came
├── PublishError         a job was not accepted
│   ├── InvalidJob       refused before it left: organization, type, payload or size
│   ├── BacklogFull      an organization has as many unfinished jobs as it may; says when to try again
│   └── NotAccepted      the broker did not confirm in time; says what was and what was not accepted
├── NotCancelled         Redis did not answer, so the workers were not told; cancel again
├── UnknownJob           nobody who was asked knows of the job
├── InvalidRecord        a record breaks docs/reference/wire-format.md
└── JobError             what a handler may raise
    ├── Transient        retry with backoff, logged at INFO; may name its own delay
    ├── Snooze           later, no attempt spent
    └── Poison           can never succeed: dead-letter topic

Anything else a handler raises is a bug: logged at ERROR, retried like Transient until attempts are spent.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any


class StreamsError(Exception):
    """Root of the errors raised on purpose."""


class ConfigError(StreamsError):
    """A setting or the environment is wrong; the message says what was expected and what came."""


class PublishError(StreamsError):
    """A job was not accepted."""


class InvalidJob(PublishError):
    """A job was refused before it left; nothing was sent."""


class BacklogFull(PublishError):
    """Organizations have as many unfinished jobs as they may, so none of theirs was sent; those of others were.

    `organizations` names them. `accepted` and `refused` hold job ids: publish the refused ones again after
    `retry_after`, 1 s to 5 min, by when they may fit if jobs go on to end as fast as lately.
    """

    def __init__(
        self,
        message: str,
        *,
        organizations: Sequence[str],
        retry_after: timedelta,
        accepted: Sequence[str],
        refused: Sequence[str],
    ) -> None:
        super().__init__(message)
        self.organizations = tuple(organizations)
        self.retry_after = retry_after
        self.accepted = tuple(accepted)
        self.refused = tuple(refused)


class NotAccepted(PublishError):
    """The broker did not confirm every job in time.

    `accepted` and `unconfirmed` hold job ids. An unconfirmed job may still have arrived: publish it again
    with the same job id or idempotency key and it runs once.
    """

    def __init__(self, message: str, *, accepted: Sequence[str], unconfirmed: Sequence[str]) -> None:
        super().__init__(message)
        self.accepted = tuple(accepted)
        self.unconfirmed = tuple(unconfirmed)


class NotCancelled(StreamsError):
    """The workers could not be told to cancel; cancelling again is harmless."""


class UnknownJob(StreamsError):
    """Nobody who was asked knows of a job; the message says who was asked."""


class InvalidRecord(StreamsError):
    """A record breaks the wire format; it goes to its queue's dead-letter topic with its bytes unchanged.

    `job` holds the common fields of the job once key, headers and body agree whose it is: only then may
    the refusal be told as an event of that organization.
    """

    def __init__(self, message: str, job: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.job = job


class JobError(StreamsError):
    """What a handler may raise."""


class Transient(JobError):
    """The attempt failed and a later one may succeed; `delay` overrides the backoff."""

    def __init__(self, message: str, *, delay: timedelta | None = None) -> None:
        super().__init__(message)
        if delay is not None and not isinstance(delay, timedelta):
            raise TypeError(f"delay is a timedelta or None, not {type(delay).__name__}")
        self.delay = delay

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), {"delay": self.delay})


class Snooze(JobError):
    """Run the job later without spending an attempt."""

    def __init__(self, message: str, *, delay: timedelta) -> None:
        super().__init__(message)
        if not isinstance(delay, timedelta):
            raise TypeError(f"delay is a timedelta, not {type(delay).__name__}")
        self.delay = delay

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), {"delay": self.delay})


class Poison(JobError):
    """The job can never succeed."""


def _rebuild(kind: type[JobError], message: str, extra: dict[str, object]) -> JobError:
    """Unpickle an error with keyword-only fields: a `process` handler raises it in another process."""
    return kind(message, **extra)
