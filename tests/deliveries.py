"""Deliveries for tests that need no record behind them."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from streams.backoff import Backoff
from streams.delivery import Delivery
from streams.execution import Execution
from streams.jobs import Handler, Job, Payload, RunsIn
from streams.offsets import PartitionOffsets
from streams.outcome import Attempt, Outcome
from streams.queues import EMAILS

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def handler(
    function: Callable[[Job[Any]], Any],
    runs_in: RunsIn = "thread",
    timeout: timedelta = timedelta(seconds=20),
) -> Handler:
    """Return a handler with three attempts that is registered nowhere."""
    return Handler("test.job", EMAILS, function, Payload, timeout, 3, runs_in, Backoff(), 1)


PLAIN = handler(lambda job: None)


def delivery(
    organization: str = "acme", number: int = 0, *, handler: Handler | None = None, **changes: Any
) -> Delivery:
    """Return a delivery on `emails`, each fact of it changeable."""
    facts: dict[str, Any] = {
        "queue": EMAILS,
        "offsets": PartitionOffsets(EMAILS.topic, 0),
        "offset": number,
        "key": organization.encode(),
        "value": b"bytes of the job",
        "headers": {},
        "handler": handler or PLAIN,
        "job_id": f"{organization}-{number}",
        "organization_id": organization,
        "payload": Payload(),
        "created_at": NOON,
        "priority": 5,
        "idempotency_key": f"{organization}-{number}",
        "ordering_key": None,
        "attempt": 1,
        "max_attempts": 3,
        "snoozes": 0,
        "replay_id": None,
        "not_before": None,
        "origin": f"{EMAILS.topic}/0/{number}",
        **changes,
    }
    return Delivery(**facts)


def job(payload: Payload | None = None, **changes: Any) -> Job[Any]:
    """Return a job as its handler sees it."""
    facts: dict[str, Any] = {
        "id": "job-1",
        "type": "test.job",
        "organization_id": "acme",
        "payload": payload or Payload(),
        "attempt": 1,
        "max_attempts": 3,
        "queued_at": NOON,
        "idempotency_key": "job-1",
        **changes,
    }
    return Job(**facts)


async def attempted(execution: Execution, handler: Handler, job: Job[Any]) -> tuple[Outcome, Attempt]:
    """Run one attempt in the current task, as a runner does; return its outcome and what it measured."""
    current = asyncio.current_task()
    assert current is not None
    outcome, measured = await execution.run(delivery(handler=handler, attempt=job.attempt), job, current)
    assert outcome is not None
    return outcome, measured
