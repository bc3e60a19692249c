"""Where an outcome goes: the records that are written for it, and how the ledger remembers it.

Pure: nothing is sent here, and the instant is an argument.
"""

import logging
from datetime import datetime, timedelta
from typing import Any, assert_never

from ratelimit import Done, Waiting, fence
from streams.delivery import (
    Delivery,
    Headers,
    Record,
    check_headers,
    header_text,
    headers_of,
    milliseconds,
    next_headers,
    not_before_of,
    origin_of,
    place_of,
)
from streams.errors import InvalidRecord
from streams.lifecycle import Lifecycle
from streams.outcome import Attempt, Cancelled, Completed, DeadLetter, Failure, Outcome, Retry, Snoozed
from streams.producer import Message
from streams.publication import FollowUps
from streams.queues import Queue, waiting_topic

log = logging.getLogger(__name__)


class Routing:
    """The only place that says what is written for what became of a record."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        follow_ups: FollowUps,
        *,
        unknown_schema_delay: timedelta,
        unknown_schema_limit: timedelta,
    ) -> None:
        self._lifecycle = lifecycle
        self._follow_ups = follow_ups
        self._unknown_schema_delay = unknown_schema_delay
        self._unknown_schema_limit = unknown_schema_limit

    def of(
        self,
        delivery: Delivery,
        outcome: Outcome,
        attempt: Attempt,
        started_at: datetime | None,
        at: datetime,
        memory_bytes: int | None,
    ) -> tuple[list[Message], Done | Waiting]:
        """Return what is written for an outcome, and how the ledger remembers it."""
        tell = self._lifecycle.of
        facts: dict[str, Any] = {
            "started_at": started_at,
            "attempt": attempt,
            "memory_bytes": memory_bytes,
        }
        rank = delivery.rank if keeps_place(delivery) else None
        match outcome:
            case Completed(output, wanted):
                event = tell("completed", delivery, at, output=output, **facts)
                return [*self._follow_ups.of(delivery, wanted, at), event], Done()
            case Retry(delay, failure):
                due = at + delay
                carried = carried_on(
                    delivery, delay, due, delivery.attempt + 1, delivery.snoozes, failure=failure, rank=rank
                )
                event = tell("retried", delivery, at, not_before=due, failure=failure, **facts)
                return [carried, event], Waiting(
                    fence(delivery.replay_id or "", delivery.attempt + 1, delivery.snoozes)
                )
            case Snoozed(delay, reason):
                due = at + delay
                # One that steps aside unasked is what it was.
                carried = carried_on(
                    delivery, delay, due, delivery.attempt, delivery.snoozes + 1, reason=reason, rank=rank,
                    copy=delivery.is_copy and started_at is None,
                )  # fmt: skip
                event = tell("snoozed", delivery, at, not_before=due, reason=reason, **facts)
                return [carried, event], Waiting(
                    fence(delivery.replay_id or "", delivery.attempt, delivery.snoozes + 1)
                )
            case DeadLetter(reason, failure):
                headers = next_headers(
                    delivery,
                    attempt=delivery.attempt,
                    snoozes=delivery.snoozes,
                    reason=reason,
                    extra=_failure_headers(failure, at),
                )
                letter = Message(delivery.queue.dead_letter_topic, delivery.key, delivery.value, headers)
                event = tell("dead", delivery, at, reason=reason, failure=failure, **facts)
                return [letter, event], Waiting(delivery.fence() + "~")
            case Cancelled(by, told):
                events = [] if told else [tell("cancelled", delivery, at, reason=by, **facts)]
                return events, Waiting(delivery.fence() + "~")
            case _:
                assert_never(outcome)

    def refused(self, queue: Queue, record: Record, error: Exception, at: datetime) -> list[Message]:
        """Return what is written for a record that breaks the wire format: a dead letter of the same bytes and key."""
        failure = Failure.named(type(error).__name__, str(error))
        headers = headers_of(record)
        origin = origin_of(record, headers)
        headers["origin"] = header_text(origin)
        headers["queue"] = queue.name.encode()
        headers["reason"] = header_text("invalid record")
        headers.update((name, header_text(text)) for name, text in _failure_headers(failure, at))
        messages = [Message(queue.dead_letter_topic, record.key, record.value, list(headers.items()))]
        if isinstance(error, InvalidRecord) and error.job is not None:
            messages.append(
                self._lifecycle.stated(
                    "dead", error.job, at, queue=queue.name, maxAttempts=1, reason="invalid record",
                    origin=origin,
                    error={"kind": failure.kind, "message": failure.message, "fingerprint": failure.fingerprint},
                )
            )  # fmt: skip
        log.warning("refused %s: %s", place_of(record), error)
        return messages

    def without_schema(self, queue: Queue, record: Record, error: Exception, at: datetime) -> list[Message]:
        """Return what is written for a record whose schema is not known yet: it waits, and is refused in the end."""
        headers = headers_of(record)
        try:
            check_headers(headers)
            stated = not_before_of(headers)
        except InvalidRecord as invalid:
            return self.refused(queue, record, invalid, at)
        raw = headers.get("unknown-schema-since", b"")
        now_ms = milliseconds(at)
        # Whoever wrote it: it neither lies ahead, which would make the wait endless, nor makes it shorter.
        since_ms = min(int(raw), now_ms) if raw.isdigit() and len(raw) < 16 else now_ms
        if now_ms - since_ms > self._unknown_schema_limit.total_seconds() * 1000:
            return self.refused(queue, record, error, at)
        due = max(at + self._unknown_schema_delay, stated or at)
        headers["unknown-schema-since"] = b"%d" % since_ms
        headers["origin"] = header_text(origin_of(record, headers))
        headers["queue"] = queue.name.encode()
        headers["reason"] = header_text(str(error))
        headers["not-before"] = b"%d" % milliseconds(due)
        return [Message(waiting_topic(queue, due - at), record.key, record.value, list(headers.items()))]


def keeps_place(delivery: Delivery) -> bool:
    """Return whether those behind it in the order of its ordering key wait while it waits for its next attempt."""
    return delivery.ordering_key is not None and delivery.handler.on_retry == "block"


def carried_on(
    delivery: Delivery,
    delay: timedelta,
    due: datetime,
    attempt: int,
    snoozes: int,
    *,
    rank: int | None,
    copy: bool = False,
    reason: str = "",
    failure: Failure | None = None,
) -> Message:
    """Return the record by which a delivery goes on, unchanged but for its headers, once it is due."""
    headers: Headers = next_headers(
        delivery,
        attempt=attempt,
        snoozes=snoozes,
        reason=reason or (f"{failure.kind}: {failure.message}" if failure else ""),
        not_before=due,
        rank=rank,
        copy=copy,
    )
    return Message(waiting_topic(delivery.queue, delay), delivery.key, delivery.value, headers)


def _failure_headers(failure: Failure, at: datetime) -> list[tuple[str, str]]:
    return [
        ("error-kind", failure.kind),
        ("error-message", failure.message),
        ("failed-at", str(milliseconds(at))),
    ]
