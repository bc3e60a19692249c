"""Queue `scheduled`: the slot of a schedule has come, and its job is queued."""

from datetime import datetime, timedelta

from pydantic import ValidationError

from streams import agents
from streams.errors import Poison
from streams.jobs import HANDLERS, Job, Payload, Result, handles
from streams.queues import SCHEDULED


class ScheduleTick(Payload):
    """A slot of a schedule, and the job that it asks for."""

    schedule: str
    slot: datetime
    job_type: str
    payload_json: str


class TickQueued(Result):
    """The job type that was queued for the slot."""

    job_type: str
    slot: datetime


@handles(SCHEDULED, "schedule.tick", timeout=timedelta(seconds=30), max_attempts=5)
def tick(job: Job[ScheduleTick]) -> TickQueued:
    """Queue the job that a schedule's slot asks for."""
    wanted = job.payload
    agents.load()
    handler = HANDLERS.get(wanted.job_type)
    if handler is None or handler.job_type == job.type:
        known = ", ".join(sorted(set(HANDLERS) - {job.type}))
        raise Poison(f"schedule {wanted.schedule!r} asks for {wanted.job_type!r}; expected one of {known}")
    try:
        payload = handler.payload.model_validate_json(wanted.payload_json)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'payload'}: {e['msg']}" for e in found)
        raise Poison(
            f"the payload of schedule {wanted.schedule!r} is no {wanted.job_type}: {problems}"
        ) from None
    job.follow_up(payload)
    return TickQueued(job_type=wanted.job_type, slot=wanted.slot)
