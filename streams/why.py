"""Why does a job wait? What the store, the ledger, the workers, the limits and the broker know of it, put together.

Each is asked once. What cannot answer is left out and said to be missing, but for Redis: without it nothing is
known that is worth saying.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ratelimit import Known, Left, Views, identity
from ratelimit.control import Control, Listener, Said
from streams.cancellation import name_of
from streams.control import known_jobs
from streams.delivery import check_identifier
from streams.errors import InvalidJob, InvalidRecord
from streams.jobs import HANDLERS, Handler
from streams.kills import Kill, Kills
from streams.limits import DeliveryLimits
from streams.pauses import Pause, Pauses
from streams.questions import WITHIN, Answers, ask
from streams.queues import QUEUES
from streams.rules import Rules, own_rules
from streams.settings import Settings
from tracking.states import FINAL, Status

if TYPE_CHECKING:
    from tracking.jobs import Job

log = logging.getLogger(__name__)

BROKER_TIMEOUT_S = 5.0
NOBODY = Answers({})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the record of a job lies that is not read yet, from the time it was written."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a job, by everyone who was asked."""

    organization_id: str
    job_id: str
    now: datetime
    stored: bool
    """Whether the store was asked."""
    job: "Job | None" = None
    """What the store knows."""
    known: Known | None = None
    """What the ledger knows, under the job's identity if a worker could tell it, else under its id."""
    place: Place | None = None
    answers: Answers = NOBODY
    limits: tuple[Left, ...] = ()
    pauses: tuple[Pause, ...] = ()
    kills: tuple[Kill, ...] = ()
    """All kill switches that hold: whether one matches is known when its record is read."""
    cancelled: bool = False

    @property
    def held(self) -> dict[str, dict[str, Any]]:
        """Return what workers know of the job that have read it, by worker."""
        return {name: answer["job"] for name, answer in self.answers.by_worker.items() if "job" in answer}


async def look(
    job_id: str,
    organization_id: str,
    settings: Settings,
    control: Control,
    admission: Views,
    *,
    within: timedelta = WITHIN,
) -> Findings:
    """Ask everyone for a job; raises InvalidJob when an id is none, AdmissionUnavailable when Redis cannot answer."""
    try:
        check_identifier("organization_id", organization_id)
        check_identifier("job_id", job_id)
    except InvalidRecord as error:
        raise InvalidJob(str(error)) from None
    secret = settings.database_url
    url = secret.get_secret_value() if secret is not None else None
    found = await asyncio.to_thread(known_jobs, url, organization_id, [job_id])
    job = (found or {}).get(job_id)
    now = await admission.now()
    if job is not None and job.status in FINAL:
        return Findings(organization_id, job_id, now, stored=True, job=job)
    place = None
    if job is not None and job.queue_name in QUEUES:
        place = await asyncio.to_thread(place_of, job, settings)
    question: dict[str, Any] = {"what": "job", "organizationId": organization_id, "jobId": job_id}
    if place is not None:
        question |= {"topic": place.topic, "partition": place.partition}
    answers = await ask(question, await admission.living(), control, within=within)
    held = [answer["job"] for answer in answers.by_worker.values() if "job" in answer]
    handler = HANDLERS.get(held[0]["jobType"] if held else job.job_type if job is not None else "")
    said = await Listener(control).news()
    return Findings(
        organization_id,
        job_id,
        now=await admission.now(),
        stored=found is not None,
        job=job,
        known=await admission.known(held[0]["identity"] if held else identity(organization_id, job_id)),
        place=place,
        answers=answers,
        limits=await _left(handler, organization_id, said, admission) if handler is not None else (),
        pauses=_pauses(handler, organization_id, said, now),
        kills=_kills(said),
        cancelled=any(one.name == name_of(organization_id, job_id) and one.value for one in said),
    )


async def _left(
    handler: Handler, organization_id: str, said: Iterable[Said], admission: Views
) -> tuple[Left, ...]:
    rules = Rules(own_rules())
    rules.hear(said)
    return tuple(await admission.left(DeliveryLimits(rules).of(handler, organization_id).limits))


def _pauses(
    handler: Handler | None, organization_id: str, said: Iterable[Said], now: datetime
) -> tuple[Pause, ...]:
    pauses = Pauses()
    pauses.hear(said, now)
    return tuple(pauses.of(handler, organization_id)) if handler is not None else ()


def _kills(said: Iterable[Said]) -> tuple[Kill, ...]:
    kills = Kills()
    kills.hear(said)
    return tuple(kills.known.values())


def place_of(job: "Job", settings: Settings) -> Place | None:
    """Return where the record of a job must lie in its queue, or None when the broker cannot tell.

    The partition comes from the organization, the offset from the time of writing: that of the publish, or, of a
    job that waited in a retry topic, its due time. So it may be some records off where clocks differ.
    """
    from aiokafka.partitioner import murmur2
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    queue = QUEUES[job.queue_name]
    written_at = max(job.queued_at, job.next_retry_at or job.queued_at)
    if job.status == Status.QUEUED and job.replay_id is not None:
        written_at = job.last_event_at
    consumer = Consumer(
        {**settings.kafka, "group.id": "streams-why", "enable.auto.commit": False, "log_level": 2}
    )
    try:
        partitions = (
            consumer.list_topics(queue.topic, timeout=BROKER_TIMEOUT_S).topics[queue.topic].partitions
        )
        if not partitions:
            return None
        number = (murmur2(job.organization_id.encode()) & 0x7FFFFFFF) % len(partitions)
        since = TopicPartition(queue.topic, number, int(written_at.timestamp() * 1000))
        (found,) = consumer.offsets_for_times([since], timeout=BROKER_TIMEOUT_S)
        offset = found.offset
        if offset < 0:
            _, offset = consumer.get_watermark_offsets(since, timeout=BROKER_TIMEOUT_S)
        return Place(queue.topic, number, offset)
    except KafkaException as error:
        log.warning("the broker did not tell where the job's record is: %s", error.args[0].str())
        return None
    finally:
        consumer.close()
