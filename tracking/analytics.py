"""Questions about what happened. Every answer is bound to one organization, or to all for None, and to a window.

`get_job_statistics`, `get_overall_statistics`: jobs by when they were queued. `get_performance_metrics`,
`get_slow_jobs`, `get_recent_failures`: jobs by when they finished. `get_worker_statistics`,
`get_error_analysis`: attempts, by when they ended. Failures that a retry made good are errors, not failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Float, Select, cast, func, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.orm import InstrumentedAttribute

from tracking.database import connected
from tracking.jobs import JOB_COLUMNS, Job, job_of
from tracking.models import JobExecution as J
from tracking.models import LifecycleEvent as E
from tracking.retention import Cleanup, Retention, cleanup_old_executions
from tracking.states import FINAL, Status

__all__ = [
    "Cleanup",
    "Durations",
    "ErrorPattern",
    "JobStatistics",
    "OverallStatistics",
    "PerformanceMetrics",
    "Retention",
    "Window",
    "WorkerStatistics",
    "cleanup_old_executions",
    "get_error_analysis",
    "get_job_statistics",
    "get_overall_statistics",
    "get_performance_metrics",
    "get_recent_failures",
    "get_slow_jobs",
    "get_worker_statistics",
]

Database = Engine | Connection


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time: from `since`, up to but without `until`."""

    since: datetime
    until: datetime

    @classmethod
    def last(cls, span: timedelta, now: datetime | None = None) -> "Window":
        """Return the window that ends now."""
        until = now or datetime.now(UTC)
        return cls(until - span, until)

    def holds(self, instant: InstrumentedAttribute[Any]) -> ColumnElement[bool]:
        return (instant >= self.since) & (instant < self.until)


@dataclass(frozen=True, slots=True)
class JobStatistics:
    """Jobs of one type in one state."""

    job_type: str
    status: str
    jobs: int
    attempts: int
    average_duration_ms: float | None
    oldest_queued_at: datetime


@dataclass(frozen=True, slots=True)
class OverallStatistics:
    """All jobs together; `success_rate` is completed of finished, 0 to 1, None while none has finished."""

    jobs: int
    by_status: dict[str, int]
    organizations: int
    attempts: int
    retried_jobs: int
    success_rate: float | None
    average_duration_ms: float | None
    average_queue_time_ms: float | None
    completed_per_minute: float
    oldest_unfinished_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """Attempts that one worker ended, and the jobs that it runs now, whenever those were queued."""

    worker_id: str
    worker_host: str | None
    running: int
    completed: int
    retried: int
    dead: int
    busy_ms: float
    average_duration_ms: float | None
    peak_memory_bytes: int | None
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True)
class ErrorPattern:
    """Errors of one kind raised at one place."""

    fingerprint: str
    kind: str
    errors: int
    jobs: int
    dead: int
    """How many of them ended their job."""
    organizations: int
    job_types: list[str]
    first_seen_at: datetime
    last_seen_at: datetime
    example_message: str
    """Of the latest one."""
    example_job_id: str


@dataclass(frozen=True, slots=True)
class Durations:
    """How some times are spread, in milliseconds; all None when none was measured."""

    average_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, slots=True)
class PerformanceMetrics:
    """How long the completed jobs of one type waited and ran."""

    job_type: str
    jobs: int
    duration: Durations
    queue_time: Durations


def get_job_statistics(
    database: Database, organization_id: str | None, window: Window
) -> list[JobStatistics]:
    """Return the jobs queued in the window, counted by type and state."""
    query = (
        select(
            J.job_type,
            J.status,
            func.count(),
            func.sum(J.attempt),
            func.avg(J.duration_ms),
            func.min(J.queued_at),
        )
        .where(*_of(J.organization_id, organization_id), window.holds(J.queued_at))
        .group_by(J.job_type, J.status)
        .order_by(J.job_type, J.status)
    )
    return [JobStatistics(*row) for row in _rows(database, query)]


def get_overall_statistics(
    database: Database, organization_id: str | None, window: Window
) -> OverallStatistics:
    """Return the jobs queued in the window, all together."""
    chosen = (*_of(J.organization_id, organization_id), window.holds(J.queued_at))
    totals = select(
        func.count(),
        func.count(J.organization_id.distinct()),
        func.coalesce(func.sum(J.attempt), 0),
        func.count().filter(J.attempt > 1),
        func.avg(J.duration_ms).filter(J.status == Status.COMPLETED),
        func.avg(J.queue_time_ms),
        func.min(J.queued_at).filter(J.finished_at.is_(None)),
    ).where(*chosen)
    counts = select(J.status, func.count()).where(*chosen).group_by(J.status)
    with connected(database) as connection:
        jobs, organizations, attempts, retried, duration, queue_time, oldest = connection.execute(
            totals
        ).one()
        by_status = {row.status: row[1] for row in connection.execute(counts)}
    finished = sum(by_status.get(status, 0) for status in FINAL)
    completed = by_status.get(Status.COMPLETED, 0)
    minutes = (window.until - window.since) / timedelta(minutes=1)
    return OverallStatistics(
        jobs=jobs,
        by_status={str(status): by_status.get(status, 0) for status in Status},
        organizations=organizations,
        attempts=attempts,
        retried_jobs=retried,
        success_rate=completed / finished if finished else None,
        average_duration_ms=duration,
        average_queue_time_ms=queue_time,
        completed_per_minute=completed / minutes,
        oldest_unfinished_at=oldest,
    )


def get_worker_statistics(
    database: Database, organization_id: str | None, window: Window
) -> list[WorkerStatistics]:
    """Return what each worker did in the window, and how many jobs it runs now."""
    ended = (
        select(
            E.worker_id,
            func.max(E.worker_host).label("host"),
            func.count().filter(E.kind == "completed").label("completed"),
            func.count().filter(E.kind == "retried").label("retried"),
            func.count().filter(E.kind == "dead").label("dead"),
            func.coalesce(func.sum(E.duration_ms), 0.0).label("busy"),
            func.avg(E.duration_ms).label("average"),
            func.max(E.memory_bytes).label("memory"),
            func.max(E.at).label("last_seen"),
        )
        .where(*_of(E.organization_id, organization_id), window.holds(E.at), E.worker_id.is_not(None))
        .group_by(E.worker_id)
        .subquery()
    )
    running = (
        select(
            J.worker_id,
            func.max(J.worker_host).label("host"),
            func.count().label("running"),
            func.max(J.last_event_at).label("last_seen"),
        )
        .where(
            *_of(J.organization_id, organization_id),
            J.status == Status.RUNNING,
            J.finished_at.is_(None),
            J.worker_id.is_not(None),
        )
        .group_by(J.worker_id)
        .subquery()
    )
    worker = func.coalesce(ended.c.worker_id, running.c.worker_id).label("worker")
    query = (
        select(
            worker,
            func.coalesce(ended.c.host, running.c.host),
            func.coalesce(running.c.running, 0),
            func.coalesce(ended.c.completed, 0),
            func.coalesce(ended.c.retried, 0),
            func.coalesce(ended.c.dead, 0),
            func.coalesce(ended.c.busy, 0.0),
            ended.c.average,
            ended.c.memory,
            func.greatest(ended.c.last_seen, running.c.last_seen),
        )
        .select_from(ended.join(running, ended.c.worker_id == running.c.worker_id, full=True))
        .order_by(worker)
    )
    return [WorkerStatistics(*row) for row in _rows(database, query)]


def get_recent_failures(
    database: Database, organization_id: str | None, window: Window, *, limit: int = 50
) -> list[Job]:
    """Return the dead jobs of the window, the latest first."""
    query = (
        select(*JOB_COLUMNS)
        .where(*_of(J.organization_id, organization_id), window.holds(J.finished_at), J.status == Status.DEAD)
        .order_by(J.finished_at.desc(), J.organization_id, J.job_id)
        .limit(limit)
    )
    return _jobs(database, query)


def get_error_analysis(
    database: Database, organization_id: str | None, window: Window, *, limit: int = 50
) -> list[ErrorPattern]:
    """Return the errors of the window's attempts grouped by fingerprint, the most frequent first."""
    newest = E.at.desc(), E.event_id.desc()
    query = (
        select(
            E.error_fingerprint.label("fingerprint"),
            E.error_kind.label("kind"),
            func.count().label("errors"),
            func.count(tuple_(E.organization_id, E.job_id).distinct()).label("jobs"),
            func.count().filter(E.kind == "dead").label("dead"),
            func.count(E.organization_id.distinct()).label("organizations"),
            func.array_agg(E.job_type.distinct()).label("job_types"),
            func.min(E.at).label("first_seen_at"),
            func.max(E.at).label("last_seen_at"),
            func.array_agg(aggregate_order_by(E.error_message, *newest))[1].label("example_message"),
            func.array_agg(aggregate_order_by(E.job_id, *newest))[1].label("example_job_id"),
        )
        .where(*_of(E.organization_id, organization_id), window.holds(E.at), E.error_fingerprint.is_not(None))
        .group_by(E.error_fingerprint, E.error_kind)
        .order_by(func.count().desc(), E.error_fingerprint, E.error_kind)
        .limit(limit)
    )
    return [ErrorPattern(**row._asdict()) for row in _rows(database, query)]


def get_performance_metrics(
    database: Database, organization_id: str | None, window: Window
) -> list[PerformanceMetrics]:
    """Return how long the jobs completed in the window waited and ran, by type."""
    query = (
        select(J.job_type, func.count(), *_spread(J.duration_ms), *_spread(J.queue_time_ms))
        .where(
            *_of(J.organization_id, organization_id),
            window.holds(J.finished_at),
            J.status == Status.COMPLETED,
        )
        .group_by(J.job_type)
        .order_by(J.job_type)
    )
    return [
        PerformanceMetrics(row[0], row[1], _durations(*row[2:5]), _durations(*row[5:8]))
        for row in _rows(database, query)
    ]


def get_slow_jobs(
    database: Database,
    organization_id: str | None,
    window: Window,
    *,
    at_least: timedelta = timedelta(0),
    limit: int = 50,
) -> list[Job]:
    """Return the jobs of the window whose last attempt ran longest, the slowest first."""
    query = (
        select(*JOB_COLUMNS)
        .where(
            *_of(J.organization_id, organization_id),
            window.holds(J.finished_at),
            J.duration_ms >= at_least / timedelta(milliseconds=1),
        )
        .order_by(J.duration_ms.desc(), J.organization_id, J.job_id)
        .limit(limit)
    )
    return _jobs(database, query)


def _of(column: InstrumentedAttribute[str], organization_id: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if organization_id is None else (column == organization_id,)


def _spread(column: InstrumentedAttribute[float | None]) -> tuple[ColumnElement[Any], ...]:
    percentiles = func.percentile_cont(cast([0.5, 0.95, 0.99], ARRAY(Float))).within_group(column)
    return func.avg(column), percentiles, func.max(column)


def _durations(
    average: float | None, percentiles: Sequence[float | None] | None, longest: float | None
) -> Durations:
    p50, p95, p99 = percentiles or (None, None, None)
    return Durations(average, p50, p95, p99, longest)


def _rows(database: Database, query: Select[Any]) -> list[Any]:
    with connected(database) as connection:
        return list(connection.execute(query))


def _jobs(database: Database, query: Select[Any]) -> list[Job]:
    with connected(database) as connection:
        return [job_of(row) for row in connection.execute(query)]
