"""Publish jobs: `Jobs` for asyncio, `SyncJobs` for everyone else.

A publish is checked before it leaves and returns once the broker has the record on every in-sync replica.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError

from streams.agents import load
from streams.backlog import Caps, Entered
from streams.codecs import codecs, lifecycle_codec
from streams.control import Cancellation, backlog_of, cancel, control_of
from streams.errors import BacklogFull, NotAccepted
from streams.jobs import Payload
from streams.lifecycle import Lifecycle
from streams.producer import Producer, Sending
from streams.publication import Prepared, Publication, Publisher
from streams.settings import Settings, settings


class _Client:
    """What the two clients share: the checks, the producer, and the sentence for what was not accepted."""

    def __init__(self, configuration: Settings | None = None) -> None:
        self._settings = configuration or settings()
        load(self._settings.handler_modules)
        self._lifecycle = Lifecycle(lifecycle_codec(self._settings))
        self._publisher = Publisher(codecs(self._settings), self._lifecycle)
        self._timeout = self._settings.publish_timeout
        self._producer = Producer(self._settings.kafka, delivery_timeout=self._timeout)
        self._caps = Caps(self._settings)

    def _prepare(self, publications: Sequence[Publication]) -> list[Prepared]:
        now = datetime.now(UTC)
        return [self._publisher.prepare(publication, now) for publication in publications]

    def check(self, publication: Publication) -> None:
        """Raise InvalidJob when a publication would be refused; sends nothing."""
        self._prepare([publication])

    def _accepted(self, entered: Entered, sending: Sending) -> list[str]:
        """Return the job ids, or raise NotAccepted or BacklogFull: a job is accepted when its own record is."""
        accepted: list[Prepared] = []
        unconfirmed = [one.job_id for one in entered.refused]
        first: KafkaError | None = None
        for index, job in enumerate(entered.prepared):
            state = sending.state(index)
            if state is True:
                accepted.append(job)
            else:
                unconfirmed.append(job.job_id)
                first = first or (state if isinstance(state, KafkaError) else None)
        ids = [job.job_id for job in accepted]
        full = _backlog_full(entered, ids) if entered.full else None
        if len(accepted) < len(entered.prepared):
            self._caps.take_back(entered, accepted)
            seconds = self._timeout.total_seconds()
            why = first.str() if first else f"no answer within {seconds:g} s"
            raise NotAccepted(
                f"{self._settings.kafka_bootstrap_servers} accepted {len(accepted)} of {len(entered.prepared)} jobs "
                f"and did not confirm {len(entered.prepared) - len(accepted)}: {why}"
                + (f"; {full}" if full else ""),
                accepted=ids,
                unconfirmed=unconfirmed,
            )
        if full is not None:
            raise full
        return ids

    async def _cancel(self, job_ids: Sequence[str], organization_id: str, reason: str) -> list[Cancellation]:
        settings = self._settings
        async with control_of(settings) as control, backlog_of(settings) as backlog:
            return await cancel(
                job_ids, organization_id, reason=reason, control=control, backlog=backlog,
                keep=settings.marker_retention,
                database_url=settings.database_url.get_secret_value() if settings.database_url else None,
                lifecycle=self._lifecycle, producer=self._producer, timeout=self._timeout,
            )  # fmt: skip

    def close(self) -> None:
        """Wait for what is on its way and let go of the broker."""
        self._producer.close()
        self._caps.close()


def _records(prepared: Sequence[Prepared]) -> list[Any]:
    # The jobs come first, so that the first reports are theirs.
    return [job.messages[0] for job in prepared] + [event for job in prepared for event in job.messages[1:]]


def _backlog_full(entered: Entered, accepted: Sequence[str]) -> BacklogFull:
    sentences = []
    for organization, full in entered.full.items():
        wanted = sum(one.organization_id == organization for one in entered.refused)
        when = f"try again in {math.ceil(full.retry_after.total_seconds())} s"
        sentences.append(
            f"{organization} has {full.count} unfinished jobs and may have {full.cap}, so {wanted} more were "
            f"refused; {when if wanted <= full.cap else 'publish fewer at once'}"
        )
    return BacklogFull(
        "; ".join(sentences),
        organizations=list(entered.full),
        retry_after=max(full.retry_after for full in entered.full.values()),
        accepted=accepted,
        refused=[one.job_id for one in entered.refused],
    )


class Jobs(_Client):
    """The asyncio client."""

    async def publish(self, payload: Payload, *, organization_id: str, **options: Any) -> str:
        """Publish one job and return its id; options are the fields of `Publication`."""
        (job_id,) = await self.publish_many([Publication(payload, organization_id, **options)])
        return job_id

    async def publish_many(self, publications: Sequence[Publication]) -> list[str]:
        """Publish jobs and return their ids in order.

        Raises InvalidJob, with nothing sent, when one of them is wrong; BacklogFull when an organization has as
        many unfinished jobs as it may, with none of its jobs sent; NotAccepted when the broker did not confirm
        all of those that were sent within PUBLISH_TIMEOUT.
        """
        entered = await asyncio.wrap_future(self._caps.enter(self._prepare(publications)))
        records = _records(entered.prepared)
        sending = await self._producer.send_each(records, self._timeout + timedelta(seconds=1))
        return self._accepted(entered, sending)

    async def cancel(self, *job_ids: str, organization_id: str, reason: str = "") -> list[Cancellation]:
        """Cancel jobs on every worker within 2 s; those that have completed by then stay completed.

        Returns what the store knew of each. Raises InvalidJob, NotCancelled.
        """
        return await self._cancel(job_ids, organization_id, reason)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)


class SyncJobs(_Client):
    """The synchronous client; safe to share between threads."""

    def publish(self, payload: Payload, *, organization_id: str, **options: Any) -> str:
        """Publish one job and return its id; options are the fields of `Publication`."""
        (job_id,) = self.publish_many([Publication(payload, organization_id, **options)])
        return job_id

    def publish_many(self, publications: Sequence[Publication]) -> list[str]:
        """Publish jobs and return their ids in order; raises as `Jobs.publish_many` does."""
        entered = self._caps.enter(self._prepare(publications)).result()
        records = _records(entered.prepared)
        sending = self._producer.send_blocking(records, self._timeout + timedelta(seconds=1))
        return self._accepted(entered, sending)

    def cancel(self, *job_ids: str, organization_id: str, reason: str = "") -> list[Cancellation]:
        """Cancel jobs on every worker; as `Jobs.cancel` does."""
        # A thread of its own, for the caller's may have a loop that runs.
        with ThreadPoolExecutor(1, "cancel") as one:
            return one.submit(asyncio.run, self._cancel(job_ids, organization_id, reason)).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
