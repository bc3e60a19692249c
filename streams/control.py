"""What operators do to jobs on all workers at once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from uuid6 import uuid7

from ratelimit import AdmissionUnavailable, identity
from ratelimit.backlog import Backlog, Left, RedisBacklog
from ratelimit.control import Control, RedisControl
from streams.cancellation import Cancel, name_of
from streams.delivery import ORIGIN_CAP, check_identifier
from streams.errors import InvalidJob, InvalidRecord, NotCancelled
from streams.lifecycle import Lifecycle
from streams.outcome import MESSAGE_CAP, clean
from streams.producer import Message, Producer
from streams.settings import Settings
from tracking.states import FINAL, Status

if TYPE_CHECKING:
    from tracking.jobs import Job

log = logging.getLogger(__name__)


@asynccontextmanager
async def control_of(settings: Settings) -> AsyncIterator[RedisControl]:
    """Open the channel to all workers for as long as the block lasts."""
    control = RedisControl.from_url(settings.redis, prefix=settings.redis_prefix)
    try:
        yield control
    finally:
        await control.close()


@asynccontextmanager
async def backlog_of(settings: Settings) -> AsyncIterator[RedisBacklog]:
    """Open the count of unfinished jobs for as long as the block lasts."""
    backlog = RedisBacklog.from_url(
        settings.redis, prefix=settings.redis_prefix, keep=settings.marker_retention
    )
    try:
        yield backlog
    finally:
        await backlog.close()


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a cancel found: the state that the store had the job in, and whether its end is told already."""

    organization_id: str
    job_id: str
    asked: bool
    """Whether the store could be asked."""
    state: Status | None = None
    """None when the store does not know the job, or was not asked."""
    told: bool = False
    """Whether the `cancelled` event was written; else the worker that meets the job writes it."""


async def cancel(
    job_ids: Sequence[str],
    organization_id: str,
    *,
    reason: str,
    control: Control,
    backlog: Backlog,
    keep: timedelta,
    database_url: str | None,
    lifecycle: Lifecycle,
    producer: Producer,
    timeout: timedelta,
) -> list[Cancellation]:
    """Cancel jobs of an organization on every worker, and return what the store knew of each, in their order.

    First all workers are told. Then those that wait, by the store, get their `cancelled` event at once: no worker
    may meet them for hours. One that runs is told by its worker, and one that has ended stays as it is. Raises
    InvalidJob when an id is none, NotCancelled when Redis cannot answer.
    """
    _check(organization_id, job_ids)
    by = clean(reason or "cancelled by an operator", MESSAGE_CAP)
    cancels = {job_id: Cancel(str(uuid7()), by) for job_id in job_ids}
    try:
        await control.say(_said(organization_id, cancels), keep)
    except AdmissionUnavailable as error:
        raise NotCancelled(f"no worker was told to cancel: {error}") from error
    known = await asyncio.to_thread(known_jobs, database_url, organization_id, list(cancels))
    if known is None:
        return [Cancellation(organization_id, job_id, False) for job_id in cancels]
    waiting = [job for job in known.values() if job.status not in (*FINAL, Status.RUNNING)]
    events = [_event(lifecycle, job, by) for job in waiting]
    sending = await producer.send_each(events, timeout)
    told = {job.job_id: job for index, job in enumerate(waiting) if sending.state(index) is True}
    if told:
        again = {name: replace(cancels[name], told=job.replay_id or "") for name, job in told.items()}
        try:
            await control.say(_said(organization_id, again), keep)
        except AdmissionUnavailable as error:
            log.warning("workers will tell again of %d jobs that they are cancelled: %s", len(told), error)
        # So far as the client publishes: the ledger knows a job that it gave a key by that, and its worker sees to it.
        left = [Left(organization_id, identity(organization_id, job_id)) for job_id in told]
        try:
            await backlog.leave(left)
        except AdmissionUnavailable as error:
            log.warning(
                "%d cancelled jobs count in the backlog until workers meet them: %s", len(told), error
            )
    return [
        Cancellation(
            organization_id,
            job_id,
            True,
            Status(known[job_id].status) if job_id in known else None,
            job_id in told,
        )
        for job_id in cancels
    ]


def _check(organization_id: str, job_ids: Sequence[str]) -> None:
    try:
        check_identifier("organization_id", organization_id)
        for job_id in job_ids:
            check_identifier("job_id", job_id)
    except InvalidRecord as error:
        raise InvalidJob(str(error)) from None


def _said(organization_id: str, cancels: Mapping[str, Cancel]) -> dict[str, str | None]:
    return {name_of(organization_id, job_id): cancel.text() for job_id, cancel in cancels.items()}


def known_jobs(
    database_url: str | None, organization_id: str, job_ids: Sequence[str]
) -> "dict[str, Job] | None":
    """Return the jobs that the store knows; None without a store, or when it does not answer."""
    if database_url is None:
        return None
    from tracking.database import TrackingError, open_database
    from tracking.jobs import find_jobs

    try:
        database = open_database(database_url, pool_size=1)
        try:
            return find_jobs(database, organization_id, job_ids)
        finally:
            database.dispose()
    except TrackingError as error:
        log.warning("the store was not asked about the jobs: %s", error)
        return None


def _event(lifecycle: Lifecycle, job: "Job", by: str) -> Message:
    """Return the event with the counters that the store knows: any later end of a worker's replaces it."""
    facts = {"jobId": job.job_id, "jobType": job.job_type, "organizationId": job.organization_id}
    return lifecycle.stated(
        "cancelled", {**facts, "createdAt": job.queued_at}, datetime.now(UTC),
        queue=job.queue_name, attempt=job.attempt, maxAttempts=job.max_attempts, snoozes=job.snoozes,
        replayId=job.replay_id, reason=by, origin=(job.origin or "")[:ORIGIN_CAP],
    )  # fmt: skip
