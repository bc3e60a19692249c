"""A publication is refused in a sentence, or becomes the records of a job."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas import Codec, files
from streams.codecs import schema_of
from streams.errors import InvalidJob
from streams.jobs import FollowUp, Job, Payload
from streams.lifecycle import Lifecycle
from streams.publication import MAX_JOB_BYTES, FollowUps, Publication, Publisher
from streams.queues import LIFECYCLE_TOPIC, WEBHOOKS
from tests.deliveries import NOON, delivery
from tests.rig import Do, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")


async def does(job: Job[Do]) -> None:
    return None


@pytest.fixture
def events() -> Codec:
    return Codec(files.current(files.LIFECYCLE))


@pytest.fixture
def publisher(no_handlers: None, events: Codec) -> Publisher:
    handle(does)
    return Publisher({WEBHOOKS.name: Codec(schema_of(WEBHOOKS))}, Lifecycle(events))


def test_a_publication_is_the_job_and_its_queued_event(publisher: Publisher, events: Codec) -> None:
    wanted = Publication(Do(number=7, password="hunter2"), "acme", idempotency_key="invoice-9", priority=2)
    prepared = publisher.prepare(wanted, NOON)
    record, told = prepared.messages
    job = publisher._codecs[WEBHOOKS.name].decode(record.value or b"")
    assert job == {
        "jobId": prepared.job_id, "jobType": "test.do", "organizationId": "acme", "createdAt": NOON,
        "priority": 2, "idempotencyKey": "invoice-9", "orderingKey": None, "maxAttempts": None,
        "payload": {"number": 7, "data": b"", "password": "hunter2"},
    }  # fmt: skip
    assert (record.topic, record.key) == (WEBHOOKS.topic, b"acme")
    headers = headers_of(record)
    assert headers["ce_id"] == prepared.job_id
    assert (headers["ce_type"], headers["organization-id"], headers["queue"]) == (
        "test.do",
        "acme",
        "webhooks",
    )
    assert "not-before" not in headers
    assert (told.topic, told.key) == (LIFECYCLE_TOPIC, prepared.job_id.encode())
    event = events.decode(told.value or b"")
    assert (event["kind"], event["jobId"], event["maxAttempts"]) == ("queued", prepared.job_id, 3)
    assert event["input"] == '{"number":7,"data":""}'
    assert b"hunter2" not in (told.value or b"")


@pytest.mark.parametrize(
    ("due", "topic"),
    [
        ({"delay": timedelta(0)}, "jobs.webhooks"),
        ({"delay": timedelta(milliseconds=999)}, "jobs.webhooks"),
        ({"delay": timedelta(seconds=1)}, "jobs.retry.1s"),
        ({"delay": timedelta(minutes=11)}, "jobs.retry.10m"),
        ({"delay": timedelta(days=366)}, "jobs.retry.6h"),
        ({"run_at": NOON - timedelta(days=1)}, "jobs.webhooks"),
        ({"run_at": NOON + timedelta(hours=2)}, "jobs.retry.1h"),
    ],
)
def test_a_due_time_chooses_the_topic_and_is_a_header(
    publisher: Publisher, due: dict[str, Any], topic: str
) -> None:
    record, _ = publisher.prepare(Publication(Do(), "acme", **due), NOON).messages
    assert record.topic == topic
    wanted = due.get("run_at") or NOON + due["delay"]
    stated = headers_of(record).get("not-before")
    assert stated == (None if wanted <= NOON else str(int(wanted.timestamp() * 1000)))


class Orphan(Payload):
    """A payload that no handler takes."""


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no organization": ({"organization_id": ""}, "organization_id must be 1 to 128 letters.*got nothing"),
    "organization None": ({"organization_id": None}, "organization_id must be"),
    "organization 7": ({"organization_id": 7}, "organization_id must be"),
    "odd organization": ({"organization_id": "a/b"}, "got 'a/b'"),
    "odd job id": ({"job_id": "a b"}, "job_id must be 1 to 128 letters"),
    "number as job id": ({"job_id": 7}, "job_id must be 1 to 128 letters"),
    "priority 0": ({"priority": 0}, r"priority must be 1 \(most urgent\) to 10, got 0"),
    "priority 11": ({"priority": 11}, "to 10, got 11"),
    "priority in words": ({"priority": "high"}, "to 10, got 'high'"),
    "priority True": ({"priority": True}, "to 10, got True"),
    "attempts 0": ({"max_attempts": 0}, "max_attempts must be 1 to 1000, got 0"),
    "attempts as text": ({"max_attempts": "3"}, "max_attempts must be 1 to 1000, got '3'"),
    "empty key": ({"idempotency_key": ""}, "idempotency_key must have 1 to 256 characters, got 0"),
    "long key": ({"ordering_key": "k" * 257}, "ordering_key must have 1 to 256 characters, got 257"),
    "number as key": ({"idempotency_key": 7}, "idempotency_key must be a text, got int"),
    "surrogate in key": ({"idempotency_key": "\ud800"}, "test.do: a field does not fit"),
    "both": ({"delay": timedelta(1), "run_at": NOON}, "give delay or run_at, not both"),
    "negative delay": ({"delay": timedelta(seconds=-1)}, "delay must not be negative"),
    "endless delay": ({"delay": timedelta.max}, "at most 366 days"),
    "far away": ({"run_at": datetime(9999, 1, 1, tzinfo=UTC)}, "at most 366 days"),
    "no zone": ({"run_at": NOON.replace(tzinfo=None)}, "run_at must have a time zone"),
    "no handler": ({"payload": Orphan()}, "Orphan is the payload of no job type; expected one of Do"),
    "too large": ({"payload": Do(data=b"x" * MAX_JOB_BYTES)}, "publish its URI"),
    "far too large": ({"payload": Do(data=b"x" * 2_000_000)}, "more than the 1048576 allowed"),
}


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(
    publisher: Publisher, change: dict[str, Any], sentence: str
) -> None:
    wanted = Publication(**{"payload": Do(), "organization_id": "acme", **change})
    with pytest.raises(InvalidJob, match=sentence):
        publisher.prepare(wanted, NOON)


def test_a_refusal_quotes_no_payload(publisher: Publisher) -> None:
    with pytest.raises(InvalidJob) as refused:
        publisher.prepare(Publication(Do(), "acme", ordering_key="hunter2\ud800"), NOON)
    assert "hunter2" not in str(refused.value)


def test_jobs_with_one_idempotency_key_are_one_job_within_their_organization(publisher: Publisher) -> None:
    def id_of(organization: str, key: str | None) -> str:
        return publisher.prepare(Publication(Do(), organization, idempotency_key=key), NOON).job_id

    assert id_of("acme", "invoice-9") == id_of("acme", "invoice-9")
    assert len({id_of("acme", "invoice-9"), id_of("globex", "invoice-9"), id_of("acme", "invoice-10")}) == 3
    assert id_of("acme", None) != id_of("acme", None)
    with pytest.raises(InvalidJob, match="give job_id or idempotency_key, not both"):
        publisher.prepare(Publication(Do(), "acme", job_id="one", idempotency_key="two"), NOON)


def test_follow_ups_have_ids_of_their_own_that_repeat_with_the_job(publisher: Publisher) -> None:
    follow_ups = FollowUps(publisher)
    wanted = [FollowUp(Do(number=1)), FollowUp(Do(number=1))]

    def ids(**changes: Any) -> list[str]:
        return [
            headers_of(message)["ce_id"]
            for message in follow_ups.of(delivery(**changes), wanted, NOON)
            if message.topic != LIFECYCLE_TOPIC
        ]

    first = ids(idempotency_key="k")
    assert len(set(first)) == 2
    assert ids(idempotency_key="k", attempt=4, snoozes=2, offset=99) == first
    for changes in ({"idempotency_key": "l"}, {"idempotency_key": "k", "organization": "globex"}):
        assert not set(ids(**changes)) & set(first)
