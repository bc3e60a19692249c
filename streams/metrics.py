"""A worker's metrics in Prometheus' text format, read from what it keeps anyway when they are asked for.

A friend of the worker, which reads what that keeps; nothing is measured for their sake but two counters. What has an
organization as a label is bounded: the first few, and all others as one. docs/reference/metrics.md lists them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streams.outcome import Cancelled, Completed, DeadLetter, Outcome, Retry, Snoozed
from streams.standings import first, standings

if TYPE_CHECKING:
    from prometheus_client import Metric

    from streams.worker import Worker

ORGANIZATIONS = 20
"""Most organizations that have series of their own."""

OUTCOMES: dict[type[Outcome], str] = {
    Completed: "completed",
    Retry: "retried",
    Snoozed: "snoozed",
    DeadLetter: "dead",
    Cancelled: "cancelled",
}

BY_QUEUE = {
    "slots": "Jobs that may run at once.",
    "running": "Jobs that have a slot.",
    "ready": "Jobs that hold a lease and have no slot yet.",
    "window_records": "Records that were read and neither admitted nor settled.",
    "window_bytes": "Bytes of those records.",
    "window_limited": "Records in the window that a limit holds back now.",
    "partitions": "Partitions that this worker has.",
    "position_span": "Most offsets of a partition between its position and what was read.",
}
BY_ORGANIZATION = {
    "running": "Jobs of an organization that hold a lease.",
    "queued": "Jobs of an organization in windows that no limit holds.",
    "limited": "Jobs of an organization in windows that a limit holds.",
    "skipped": "Jobs of an organization that were skipped, to be read back.",
    "slot_seconds": "Seconds of slots that an organization used in about the last minute.",
}


def page(worker: "Worker") -> bytes:
    """Return the metrics of a worker as they are now."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(Collector(worker))
    return generate_latest(registry)


class Collector:
    """Reads a worker once for each scrape."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker

    def collect(self) -> Iterator["Metric"]:
        """Yield every metric with its series."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        worker = self._worker
        yield from _gauges("streams_queue", BY_QUEUE, "queue", _queues(worker))
        organizations = {
            name: {
                "running": one.running,
                "queued": one.queued,
                "limited": one.limited,
                "skipped": one.skipped,
                "slot_seconds": one.seconds,
            }
            for name, one in first(standings(worker), ORGANIZATIONS).items()
        }
        yield from _gauges("streams_organization", BY_ORGANIZATION, "organization", organizations)
        yield GaugeMetricFamily(
            "streams_outcomes_unsettled",
            "Outcomes that are not durable yet.",
            value=worker.settlement.unsettled,
        )
        ended = CounterMetricFamily("streams_jobs_ended", "Runs that ended.", labels=["queue", "outcome"])
        for (queue, kind), count in worker.settlement.ended.items():
            ended.add_metric([queue, OUTCOMES[kind]], count)
        yield ended
        refused = CounterMetricFamily(
            "streams_limit_refusals",
            "Answers of admission that a limit refuses a job.",
            labels=["queue", "kind", "holds"],
        )
        for labels, count in worker.limits.refusals.items():
            refused.add_metric(list(labels), count)
        yield refused


def _gauges(
    prefix: str, described: dict[str, str], label: str, found: dict[str, dict[str, Any]]
) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    for name, text in described.items():
        gauge = GaugeMetricFamily(f"{prefix}_{name}", text, labels=[label])
        for value, numbers in found.items():
            gauge.add_metric([value], numbers[name])
        yield gauge


def _queues(worker: "Worker") -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for topic, pipeline in worker.pipelines.items():
        window = pipeline.window
        offsets = [one for one in worker._offsets.values() if one.topic == topic]
        leased = pipeline.runs.all()
        running = sum(one.started_at is not None for one in leased)
        found[pipeline.queue.name] = {
            "slots": pipeline.runs.slots,
            "running": running,
            "ready": len(leased) - running,
            "window_records": window.records,
            "window_bytes": window.bytes,
            "window_limited": sum(one.limited for one in standings(worker, pipeline.queue.name).values()),
            "partitions": len(offsets),
            "position_span": max((one.span for one in offsets), default=0),
        }
    return found
