"""The jobs of the simulated world: one job type for each queue of `primary`, all with one scripted handler."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from unittest.mock import patch

from streams.backoff import Backoff
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Handler, Job, Payload, Result, handles
from streams.queues import INTEGRATIONS, Queue, queues_of
from tests.simulation.loop import PROCESS

TIMEOUT = timedelta(seconds=5)
MAX_ATTEMPTS = 4
BACKOFF = Backoff(first=timedelta(seconds=1), minimum=timedelta(milliseconds=200), cap=timedelta(seconds=7))

How = Literal["done", "transient", "bug", "poison", "snooze", "limited", "hang"]


class Simulated(Payload):
    """Work as its script says; each queue has a subclass."""

    number: int = 0


class Told(Result):
    """Which number was worked on."""

    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one execution of a job does: work for a while, then end somehow."""

    work_seconds: float
    how: How = "done"
    follow_ups: int = 0
    progress: bool = False


def payload_of(queue: Queue) -> type[Simulated]:
    """Return the payload of a queue's job type."""
    return _PAYLOADS[queue.name]


def _register(queue: Queue) -> type[Simulated]:
    payload = type(f"Simulated{queue.name.title()}", (Simulated,), {"__module__": __name__})

    async def perform(job: Job[Any]) -> Told:
        process = PROCESS.get()
        assert process is not None
        told: Told = await process.world.perform(process, job)
        return told

    perform.__annotations__ = {"job": Job[payload], "return": Told}  # type: ignore[valid-type]
    handles(
        queue,
        f"simulated.{queue.name}",
        timeout=TIMEOUT,
        max_attempts=MAX_ATTEMPTS,
        backoff=BACKOFF,
        # Dear enough for a few jobs to reach the limits of queues that have some.
        cost=1 if queue.limit is None else max(1, queue.limit.count // 25, 3),
        ordering="key",
        on_retry="pass" if queue in PASSING else "block",
    )(perform)
    return payload


QUEUES_HERE = queues_of("primary")

PASSING = (INTEGRATIONS,)
"""Queues on which what waits for its next attempt lets others of its ordering key pass."""

with patch.dict(HANDLERS, clear=True), patch.dict(TYPE_OF_PAYLOAD, clear=True):
    _PAYLOADS = {queue.name: _register(queue) for queue in QUEUES_HERE}
    HANDLERS_HERE: dict[str, Handler] = dict(HANDLERS)
    TYPES_HERE: dict[type[Payload], str] = dict(TYPE_OF_PAYLOAD)
