"""Single jobs out of the store: pages of them, and one with everything that happened to it."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, select, tuple_

from tracking.database import AmbiguousJob, InvalidCursor, connected
from tracking.models import JobExecution as J
from tracking.models import LifecycleEvent as E
from tracking.states import Status


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store knows it; error and run are those of its last attempt that had one."""

    organization_id: str
    job_id: str
    job_type: str
    job_name: str
    queue_name: str
    status: str
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_retry_at: datetime | None
    last_event_at: datetime
    attempt: int
    max_attempts: int
    snoozes: int
    replay_id: str | None
    reason: str | None
    progress: float | None
    input: Any
    output: Any
    error_kind: str | None
    error_message: str | None
    error_stack: str | None
    error_fingerprint: str | None
    worker_id: str | None
    worker_host: str | None
    duration_ms: float | None
    queue_time_ms: float | None
    cpu_time_ms: float | None
    memory_bytes: int | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing that happened to a job."""

    event_id: str
    kind: str
    at: datetime
    attempt: int
    max_attempts: int
    snoozes: int
    replay_id: str | None
    worker_id: str | None
    worker_host: str | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    not_before: datetime | None
    duration_ms: float | None
    cpu_time_ms: float | None
    memory_bytes: int | None
    progress: float | None
    reason: str | None
    error_kind: str | None
    error_message: str | None
    error_stack: str | None
    error_fingerprint: str | None
    origin: str | None


@dataclass(frozen=True, slots=True)
class JobDetail:
    """A job and its events, the earliest first."""

    job: Job
    events: tuple[JobEvent, ...]


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; None means any. Times are those of the publish: from `since`, before `until`."""

    organization_id: str | None = None
    status: Status | None = None
    queue_name: str | None = None
    job_type: str | None = None
    worker_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        chosen = [
            (J.organization_id, self.organization_id),
            (J.status, self.status),
            (J.queue_name, self.queue_name),
            (J.job_type, self.job_type),
            (J.worker_id, self.worker_id),
        ]
        conditions: list[ColumnElement[bool]] = [
            column == value for column, value in chosen if value is not None
        ]
        if self.since is not None:
            conditions.append(J.queued_at >= self.since)
        if self.until is not None:
            conditions.append(J.queued_at < self.until)
        return conditions


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and the cursor of the next page, None on the last one."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


JOB_COLUMNS = [getattr(J, field.name) for field in fields(Job)]
_EVENT_COLUMNS = [getattr(E, field.name) for field in fields(JobEvent)]
_ORDER = tuple_(J.queued_at, J.organization_id, J.job_id)


def job_of(row: Row[Any]) -> Job:
    """Return the job in a row of `JOB_COLUMNS`."""
    return Job(**row._asdict())


def list_jobs(
    database: Engine | Connection, chosen: JobFilter, *, limit: int = 50, cursor: str | None = None
) -> Page:
    """Return jobs, the latest published first; a later page holds none twice, whatever was published since.

    Raises InvalidCursor for a cursor that no page gave out.
    """
    query = (
        select(*JOB_COLUMNS)
        .where(*chosen.conditions())
        .order_by(J.queued_at.desc(), J.organization_id.desc(), J.job_id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(tuple_(*_read_cursor(cursor)) > _ORDER)
    with connected(database) as connection:
        found = [job_of(row) for row in connection.execute(query)]
    jobs = tuple(found[:limit])
    return Page(jobs, _cursor(jobs[-1]) if len(found) > limit else None)


def find_jobs(database: Engine | Connection, organization_id: str, job_ids: Sequence[str]) -> dict[str, Job]:
    """Return those of an organization's jobs that the store knows, by id."""
    query = select(*JOB_COLUMNS).where(J.organization_id == organization_id)
    found: dict[str, Job] = {}
    with connected(database) as connection:
        for start in range(0, len(job_ids), 1000):
            rows = connection.execute(query.where(J.job_id.in_(job_ids[start : start + 1000])))
            found |= {job.job_id: job for job in map(job_of, rows)}
    return found


def get_job(
    database: Engine | Connection, job_id: str, organization_id: str | None = None
) -> JobDetail | None:
    """Return a job with its events, or None when there is none.

    Raises AmbiguousJob when several organizations have one of this id and none is given.
    """
    query = select(*JOB_COLUMNS).where(*JobFilter(organization_id).conditions(), J.job_id == job_id)
    with connected(database) as connection:
        found = [job_of(row) for row in connection.execute(query.order_by(J.organization_id))]
        if not found:
            return None
        if len(found) > 1:
            owners = ", ".join(job.organization_id for job in found)
            raise AmbiguousJob(f"{owners} each have a job {job_id}: say of which organization")
        (job,) = found
        told = connection.execute(
            select(*_EVENT_COLUMNS)
            .where(E.organization_id == job.organization_id, E.job_id == job.job_id)
            .order_by(E.at, E.event_id)
        )
        return JobDetail(job, tuple(JobEvent(**row._asdict()) for row in told))


def _cursor(job: Job) -> str:
    place = [job.queued_at.isoformat(), job.organization_id, job.job_id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str, str]:
    try:
        queued_at, organization_id, job_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(queued_at), str(organization_id), str(job_id)
    except (ValueError, TypeError, binascii.Error):
        raise InvalidCursor("the cursor is none that an earlier page gave out") from None
