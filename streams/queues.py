"""The nine queues, the four workers that run them, and the names of every topic."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

WorkerType = Literal["primary", "document", "ai", "scheduled"]
WORKER_TYPES: tuple[WorkerType, ...] = ("primary", "document", "ai", "scheduled")

LIFECYCLE_TOPIC = "jobs.lifecycle"
TRACKING_DEAD_LETTER_TOPIC = "jobs.lifecycle.dlt"


OnRedisDown = Literal["closed", "open", "local"]
"""What a queue does while the ledger cannot answer: wait; go on without leases and limits; or without leases, holding
each limit at this worker's share of it."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `count` jobs each `per`; `scope` says whether the whole queue or each organization has it."""

    count: int
    per: timedelta
    scope: Literal["queue", "organization"]


@dataclass(frozen=True, slots=True)
class Queue:
    """What a queue is for and how its worker runs it; `priority` 1 is the most urgent."""

    name: str
    worker: WorkerType
    priority: int
    concurrency: int
    purpose: str
    limit: RateLimit | None = None
    on_redis_down: OnRedisDown = "closed"

    @property
    def topic(self) -> str:
        return f"jobs.{self.name}"

    @property
    def dead_letter_topic(self) -> str:
        return f"jobs.{self.name}.dlt"


_second, _minute = timedelta(seconds=1), timedelta(minutes=1)

CRITICAL = Queue("critical", "primary", 1, 10, "emergency notifications and alerts", on_redis_down="open")
DOCUMENTS = Queue(
    "document-processing", "document", 2, 8, "OCR and document analysis", RateLimit(20, _second, "queue")
)
AI = Queue("ai-processing", "ai", 2, 5, "ML and AI", RateLimit(10, _minute, "queue"))
REPORTS = Queue("reports", "primary", 3, 5, "report generation")
EMAILS = Queue("emails", "primary", 3, 10, "e-mail", RateLimit(100, _minute, "queue"))
WEBHOOKS = Queue("webhooks", "primary", 3, 15, "webhooks, outgoing and incoming")
INTEGRATIONS = Queue(
    "integrations", "primary", 3, 5, "third-party integrations", RateLimit(10, _second, "organization")
)
MAINTENANCE = Queue("maintenance", "scheduled", 4, 2, "system clean-up")
SCHEDULED = Queue("scheduled", "scheduled", 5, 1, "cron-like jobs")

QUEUES: dict[str, Queue] = {
    queue.name: queue
    for queue in (
        CRITICAL, DOCUMENTS, AI, REPORTS, EMAILS, WEBHOOKS, INTEGRATIONS, MAINTENANCE, SCHEDULED,
    )
}  # fmt: skip


def queues_of(worker: WorkerType) -> tuple[Queue, ...]:
    """Return the queues that a worker app runs, the most urgent first."""
    return tuple(sorted((q for q in QUEUES.values() if q.worker == worker), key=lambda q: q.priority))


SHORTEST_DELAY = timedelta(seconds=1)

RETRY_DELAYS: dict[str, timedelta] = {
    "jobs.retry.1s": SHORTEST_DELAY,
    "jobs.retry.5s": timedelta(seconds=5),
    "jobs.retry.30s": timedelta(seconds=30),
    "jobs.retry.2m": timedelta(minutes=2),
    "jobs.retry.10m": timedelta(minutes=10),
    "jobs.retry.1h": timedelta(hours=1),
    "jobs.retry.6h": timedelta(hours=6),
}
"""Topic to the delay of every record in it, the shortest first."""


def waiting_topic(queue: Queue, remaining: timedelta) -> str:
    """Return where a record of a queue waits: in the retry topic with the longest delay ≤ the remaining wait.

    When even the shortest is too long it goes to the queue itself, whose worker holds it until it is due.
    """
    chosen = queue.topic
    for topic, delay in RETRY_DELAYS.items():
        if delay <= remaining:
            chosen = topic
    return chosen
