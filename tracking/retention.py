"""How long the store keeps what happened."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Engine,
    and_,
    delete,
    false,
    func,
    or_,
    select,
    tuple_,
)
from sqlalchemy.engine import CursorResult

from tracking.database import connected
from tracking.models import JobExecution as J
from tracking.models import LifecycleEvent as E
from tracking.states import Status


def _default_ages() -> dict[Status, timedelta]:
    return {
        Status.COMPLETED: timedelta(days=30),
        Status.CANCELLED: timedelta(days=30),
        Status.DEAD: timedelta(days=90),
    }


@dataclass(frozen=True, slots=True)
class Retention:
    """The age at which jobs of each final state go, and events; None keeps them. Unfinished jobs always stay."""

    jobs: dict[Status, timedelta] = field(default_factory=_default_ages)
    events: timedelta | None = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Cleanup:
    """How much went, or would go."""

    jobs: int
    events: int


def cleanup_old_executions(
    database: Engine | Connection,
    organization_id: str | None,
    retention: Retention,
    *,
    now: datetime | None = None,
    batch: int = 5_000,
    dry_run: bool = False,
) -> Cleanup:
    """Delete finished jobs with their events, and events, that are older than their retention; count them.

    Each batch is a transaction of its own, so the sink waits for none of them long.
    """
    instant = now or datetime.now(UTC)
    is_old_job = or_(
        false(),
        *(and_(J.status == status, J.finished_at < instant - age) for status, age in retention.jobs.items()),
    )
    is_old_event: ColumnElement[bool] = false()
    if retention.events is not None:
        # An unfinished job keeps its events: they are its only history.
        is_old_event = and_(E.at < instant - retention.events, ~_job(J.finished_at.is_(None)))
    if organization_id is not None:
        is_old_job = and_(J.organization_id == organization_id, is_old_job)
        is_old_event = and_(E.organization_id == organization_id, is_old_event)
    with connected(database) as connection:
        if dry_run:
            jobs = select(func.count()).select_from(J).where(is_old_job)
            events = select(func.count()).select_from(E).where(or_(is_old_event, _job(is_old_job)))
            return Cleanup(connection.execute(jobs).scalar_one(), connection.execute(events).scalar_one())
        removed = _delete_jobs(connection, is_old_job, batch)
        return Cleanup(removed.jobs, removed.events + _delete_events(connection, is_old_event, batch))


def _job(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether the job of an event meets the condition."""
    same = (J.organization_id == E.organization_id, J.job_id == E.job_id)
    return select(J.job_id).where(*same, condition).exists()


def _delete_jobs(connection: Connection, is_old: ColumnElement[bool], batch: int) -> Cleanup:
    jobs = events = 0
    while True:
        # A job that the sink is changing right now is skipped: it is not old.
        chosen = (
            select(J.organization_id, J.job_id).where(is_old).limit(batch).with_for_update(skip_locked=True)
        )
        gone = connection.execute(
            delete(J)
            .where(tuple_(J.organization_id, J.job_id).in_(chosen))
            .returning(J.organization_id, J.job_id)
        ).all()
        if gone:
            keys = [tuple(row) for row in gone]
            events += _deleted(connection, delete(E).where(tuple_(E.organization_id, E.job_id).in_(keys)))
        connection.commit()
        jobs += len(gone)
        if len(gone) < batch:
            return Cleanup(jobs, events)


def _delete_events(connection: Connection, is_old: ColumnElement[bool], batch: int) -> int:
    events = 0
    while True:
        chosen = select(E.event_id).where(is_old).limit(batch)
        gone = _deleted(connection, delete(E).where(E.event_id.in_(chosen)))
        connection.commit()
        events += gone
        if gone < batch:
            return events


def _deleted(connection: Connection, statement: Delete) -> int:
    result: CursorResult[Any] = connection.execute(statement)
    return result.rowcount
