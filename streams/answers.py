"""What a worker answers when it is asked: what it knows of a job, and how organizations stand."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from ratelimit.control import Control
from streams import window_view
from streams.delivery import Delivery
from streams.questions import Question, Questions
from streams.standings import first, standings
from streams.window_view import Hold, Waiting

if TYPE_CHECKING:
    from streams.pipeline import Pipeline
    from streams.worker import Worker

TOP = 100
"""Most organizations that one worker tells of by name."""

Facts = dict[str, Any]


def questions_to(worker: "Worker", name: str, control: Control | None) -> Questions:
    """Return what answers the questions to a worker."""
    return Questions(name, control, partial(answer, worker))


def answer(worker: "Worker", question: Question) -> Mapping[str, Any]:
    """Return the answer to a question; raises ValueError for one that is none."""
    match question:
        case {"what": "top", "queue": queue_name}:
            found = first(standings(worker, queue_name), TOP)
            return {name: asdict(standing) for name, standing in found.items()}
        case {"what": "job", "organizationId": str(organization_id), "jobId": str(job_id), **rest}:
            return of_job(worker, organization_id, job_id, rest.get("topic"), rest.get("partition"))
    raise ValueError(f"expected a question of this version, got {question!r}")


def of_job(
    worker: "Worker", organization_id: str, job_id: str, topic: str | None, partition: int | None
) -> Facts:
    """Return what a worker knows of a job, and of the partition in which it would be, if it has that."""
    from streams.worker import Partition  # which imports this module

    now = worker.clock()
    facts: Facts = {}
    for pipeline in worker.pipelines.values():
        found = _in(worker, pipeline, organization_id, job_id, now)
        if found is not None:
            facts["job"] = found
            topic = pipeline.queue.topic
            break
    if topic in worker.pipelines:
        facts["queue"] = _queue(worker.pipelines[topic], organization_id, now)
        offsets = None if partition is None else worker.offsets(Partition(topic, partition))
        if offsets is not None:
            facts["partition"] = {"next": offsets.next_offset, "position": offsets.position}
    return facts


def _in(
    worker: "Worker", pipeline: "Pipeline", organization_id: str, job_id: str, now: datetime
) -> Facts | None:
    def meant(one: Delivery) -> bool:
        return one.job_id == job_id and one.organization_id == organization_id

    ahead = 0
    for running in pipeline.runs.all():
        if meant(running.delivery):
            if running.started_at is not None:
                return _facts("running", running.delivery, since=running.started_at.isoformat())
            return _facts("ready", running.delivery, ahead=ahead)
        ahead += running.started_at is None
    waiting = window_view.find(pipeline.window, organization_id, job_id, now)
    if waiting is not None:
        return _facts("window", waiting.delivery, **_waits(waiting))
    for where, deliveries in (
        ("ready", pipeline.asking),
        ("ending", worker.settlement.leased()),
        ("cancelling", pipeline.unbegun.all()),
    ):
        for delivery in filter(meant, deliveries):
            return _facts(where, delivery)
    return None


def _facts(where: str, delivery: Delivery, **more: Any) -> Facts:
    return {
        "where": where,
        "queue": delivery.queue.name,
        "jobType": delivery.handler.job_type,
        "identity": delivery.identity,
        "attempt": delivery.attempt,
        "maxAttempts": delivery.max_attempts,
        "orderingKey": delivery.ordering_key,
        **more,
    }


def _waits(waiting: Waiting) -> Facts:
    return {
        "position": waiting.position,
        "lane": waiting.lane,
        "organizations": waiting.organizations,
        "holds": [_hold(one) for one in waiting.holds],
        "behind": waiting.behind,
        "due": _iso(waiting.due),
        "startsAt": _iso(waiting.starts_at),
    }


def _hold(hold: Hold) -> Facts:
    return {"of": hold.of, "by": hold.by, "until": hold.until.isoformat()}


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat()


def _queue(pipeline: "Pipeline", organization_id: str, now: datetime) -> Facts:
    window = pipeline.window
    return {
        "name": pipeline.queue.name,
        "slots": pipeline.runs.slots,
        "running": len(pipeline.runs.unfinished()),
        "records": window.records,
        "full": window.full,
        "secondsPerJob": window.seconds_per_job,
        "skipped": window_view.skipped(window, organization_id),
        "holds": [_hold(one) for one in window_view.lane_holds(window, organization_id, now)],
        "outages": pipeline.runs.outages,
    }
