"""Publish jobs: `Jobs` for asyncio, `SyncJobs` for everyone else.

A publish is checked before it leaves and returns once the broker has the record on every in-sync replica.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError

from streams.agents import load
from streams.codecs import codecs, lifecycle_codec
from streams.control import Cancellation, cancel, control_of
from streams.errors import NotAccepted
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

    def _prepare(self, publications: Sequence[Publication]) -> list[Prepared]:
        now = datetime.now(UTC)
        return [self._publisher.prepare(publication, now) for publication in publications]

    def check(self, publication: Publication) -> None:
        """Raise InvalidJob when a publication would be refused; sends nothing."""
        self._prepare([publication])

    def _accepted(self, prepared: Sequence[Prepared], sending: Sending) -> list[str]:
        """Return the job ids, or raise NotAccepted: a job is accepted when its own record is."""
        accepted, unconfirmed = [], []
        first: KafkaError | None = None
        for index, job in enumerate(prepared):
            state = sending.state(index)
            if state is True:
                accepted.append(job.job_id)
            else:
                unconfirmed.append(job.job_id)
                first = first or (state if isinstance(state, KafkaError) else None)
        if unconfirmed:
            seconds = self._timeout.total_seconds()
            why = first.str() if first else f"no answer within {seconds:g} s"
            raise NotAccepted(
                f"{self._settings.kafka_bootstrap_servers} accepted {len(accepted)} of {len(prepared)} jobs "
                f"and did not confirm {len(unconfirmed)}: {why}",
                accepted=accepted,
                unconfirmed=unconfirmed,
            )
        return accepted

    async def _cancel(self, job_ids: Sequence[str], organization_id: str, reason: str) -> list[Cancellation]:
        settings = self._settings
        async with control_of(settings) as control:
            return await cancel(
                job_ids, organization_id, reason=reason, control=control, keep=settings.marker_retention,
                database_url=settings.database_url.get_secret_value() if settings.database_url else None,
                lifecycle=self._lifecycle, producer=self._producer, timeout=self._timeout,
            )  # fmt: skip

    def close(self) -> None:
        """Wait for what is on its way and let go of the broker."""
        self._producer.close()


def _records(prepared: Sequence[Prepared]) -> list[Any]:
    # The jobs come first, so that the first reports are theirs.
    return [job.messages[0] for job in prepared] + [event for job in prepared for event in job.messages[1:]]


class Jobs(_Client):
    """The asyncio client."""

    async def publish(self, payload: Payload, *, organization_id: str, **options: Any) -> str:
        """Publish one job and return its id; options are the fields of `Publication`."""
        (job_id,) = await self.publish_many([Publication(payload, organization_id, **options)])
        return job_id

    async def publish_many(self, publications: Sequence[Publication]) -> list[str]:
        """Publish jobs and return their ids in order.

        Raises InvalidJob, with nothing sent, when one of them is wrong; NotAccepted when the broker did not
        confirm all of them within PUBLISH_TIMEOUT.
        """
        prepared = self._prepare(publications)
        sending = await self._producer.send_each(_records(prepared), self._timeout + timedelta(seconds=1))
        return self._accepted(prepared, sending)

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
        prepared = self._prepare(publications)
        sending = self._producer.send_blocking(_records(prepared), self._timeout + timedelta(seconds=1))
        return self._accepted(prepared, sending)

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
