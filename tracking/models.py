"""The tables of the store, column by column in docs/reference/tracking.md."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Computed, Index, Text
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, JSONB, TIMESTAMP, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tracking.states import FINAL, Status

Instant = TIMESTAMP(timezone=True)
Key = Text(collation="C")
"""The order of a register's key is that of its code points, as in Python, not that of a language."""

_STATUSES = ", ".join(f"'{status}'" for status in Status)
_FINAL = ", ".join(f"'{status}'" for status in Status if status in FINAL)


class Model(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {  # noqa: RUF012
        str: Text(),
        datetime: Instant,
        float: DOUBLE_PRECISION(),
        dict[str, Any]: JSONB(none_as_null=True),
    }


class JobExecution(Model):
    """A job: the fold of its events, one row each. The `*_key` columns belong to `tracking.fold`."""

    __tablename__ = "job_executions"

    organization_id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(primary_key=True)
    job_type: Mapped[str]
    job_name: Mapped[str] = mapped_column(Text, Computed("job_type", persisted=True))
    queue_name: Mapped[str]
    status: Mapped[str]

    queued_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    next_retry_at: Mapped[datetime | None]
    last_event_at: Mapped[datetime]

    attempt: Mapped[int]
    max_attempts: Mapped[int]
    snoozes: Mapped[int]
    replay_id: Mapped[str | None]
    reason: Mapped[str | None]
    progress: Mapped[float | None]

    input: Mapped[dict[str, Any] | None]
    output: Mapped[dict[str, Any] | None]

    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    error_stack: Mapped[str | None]
    error_fingerprint: Mapped[str | None]

    worker_id: Mapped[str | None]
    worker_host: Mapped[str | None]
    duration_ms: Mapped[float | None]
    queue_time_ms: Mapped[float | None]
    cpu_time_ms: Mapped[float | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    origin: Mapped[str | None] = mapped_column(Key)

    state_key: Mapped[str] = mapped_column(Key)
    run_key: Mapped[str] = mapped_column(Key)
    error_key: Mapped[str] = mapped_column(Key)
    progress_key: Mapped[str] = mapped_column(Key)
    input_key: Mapped[str] = mapped_column(Key)

    __table_args__ = (
        CheckConstraint("organization_id <> '' AND job_id <> ''", name="job_executions_identified"),
        CheckConstraint(f"status IN ({_STATUSES})", name="job_executions_status"),
        CheckConstraint(
            f"(status IN ({_FINAL})) = (finished_at IS NOT NULL)", name="job_executions_finished_iff_final"
        ),
        CheckConstraint("attempt >= 1 AND max_attempts >= 1 AND snoozes >= 0", name="job_executions_counts"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="job_executions_progress"),
        CheckConstraint("duration_ms >= 0 AND queue_time_ms >= 0", name="job_executions_times"),
        Index("job_executions_by_organization", "organization_id", "queued_at", "job_id"),
        Index("job_executions_by_queued_at", "queued_at", "organization_id", "job_id"),
        Index("job_executions_by_finished_at", "finished_at", postgresql_where="finished_at IS NOT NULL"),
        Index("job_executions_by_job", "job_id"),
        Index("job_executions_unfinished", "status", postgresql_where="finished_at IS NULL"),
    )


class LifecycleEvent(Model):
    """An event as it came, once each; input and output are kept with the execution only."""

    __tablename__ = "lifecycle_events"

    event_id: Mapped[str] = mapped_column(UUID(as_uuid=False), primary_key=True)
    organization_id: Mapped[str]
    job_id: Mapped[str]
    job_type: Mapped[str]
    queue_name: Mapped[str]
    kind: Mapped[str]
    at: Mapped[datetime]
    attempt: Mapped[int]
    max_attempts: Mapped[int]
    snoozes: Mapped[int]
    replay_id: Mapped[str | None]
    worker_id: Mapped[str | None]
    worker_host: Mapped[str | None]
    queued_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    duration_ms: Mapped[float | None]
    cpu_time_ms: Mapped[float | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[float | None]
    reason: Mapped[str | None]
    error_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    error_stack: Mapped[str | None]
    error_fingerprint: Mapped[str | None]
    origin: Mapped[str | None]

    __table_args__ = (
        Index("lifecycle_events_by_job", "organization_id", "job_id", "at"),
        Index("lifecycle_events_by_at", "at"),
        Index("lifecycle_events_with_error", "at", postgresql_where="error_fingerprint IS NOT NULL"),
    )


class SinkPosition(Model):
    """The next offset to read of a partition. Only the sink that took the latest epoch may move it."""

    __tablename__ = "sink_positions"

    topic: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint("position >= 0 AND epoch >= 1", name="sink_positions_counts"),)
