"""A record is a delivery, or is refused in a sentence; what is carried on keeps its order."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from ratelimit import fence
from schemas import Codec, NotAvro, UnknownSchema
from schemas.derive import job_schema
from streams.delivery import (
    ATTEMPT_CAP,
    HEADERS_CAP,
    ORIGIN_CAP,
    SNOOZE_CAP,
    Delivery,
    envelope,
    header_text,
    milliseconds,
    next_headers,
    read,
)
from streams.errors import InvalidRecord
from streams.jobs import HANDLERS, Job, Payload
from streams.offsets import PartitionOffsets
from streams.queues import EMAILS, WEBHOOKS
from tests.deliveries import NOON, delivery
from tests.rig import Do, Read, handle

pytestmark = pytest.mark.usefixtures("no_handlers")

REPLAY = "0191b2c3-0000-7000-8000-000000000001"


class Fussy(Payload):
    """A payload whose validator has a bug."""

    number: int

    @field_validator("number")
    @classmethod
    def _check(cls, number: int) -> int:
        return {1: 1}[number]


async def does(job: Job[Do]) -> None:
    return None


async def fusses(job: Job[Fussy]) -> None:
    return None


@pytest.fixture
def codec(no_handlers: None) -> Codec:
    handle(does)
    handle(fusses)
    return Codec(job_schema(WEBHOOKS.name, {"test.do": Do, "test.fussy": Fussy}))


def written(codec: Codec, headers: Mapping[str, bytes] | None = None, **fields: Any) -> Read:
    """Return a record that fits, but for what is changed."""
    job = {
        "jobId": "job-1", "jobType": "test.do", "organizationId": "acme", "createdAt": NOON, "priority": 5,
        "idempotencyKey": None, "orderingKey": None, "maxAttempts": None,
        "payload": Do().model_dump(by_alias=True), **fields,
    }  # fmt: skip
    stated = envelope(job["jobId"], job["jobType"], job["organizationId"], WEBHOOKS, NOON)
    stated |= headers or {}
    key = job["organizationId"].encode()
    return Read(WEBHOOKS.topic, 3, 14, key, codec.encode(job), list(stated.items()))


def delivered(codec: Codec, record: Read) -> Delivery:
    return read(WEBHOOKS, record, PartitionOffsets(WEBHOOKS.topic, 3), codec)


def test_a_first_record_is_attempt_one_without_snoozes(codec: Codec) -> None:
    one = delivered(codec, written(codec))
    assert (one.job_id, one.organization_id, one.offset) == ("job-1", "acme", 14)
    assert (one.attempt, one.snoozes, one.max_attempts, one.priority) == (1, 0, 3, 5)
    assert (one.replay_id, one.not_before, one.origin) == (None, None, "jobs.webhooks/3/14")
    assert one.idempotency_key == "job-1"
    assert one.identity == "acme:job-1"
    assert one.fence() == fence("", 1, 0)


def test_headers_carry_the_state_of_the_delivery(codec: Codec) -> None:
    state = {
        "attempt": b"4", "snoozes": b"7", "not-before": b"1772366400123", "replay-id": REPLAY.encode(),
        "origin": b"jobs.webhooks/1/2",
    }  # fmt: skip
    one = delivered(codec, written(codec, state, idempotencyKey="invoice-9", maxAttempts=9))
    assert (one.attempt, one.snoozes, one.max_attempts) == (4, 7, 9)
    assert one.not_before == datetime(2026, 3, 1, 12, 0, 0, 123000, UTC)
    assert one.fence() == fence(REPLAY, 4, 7)
    assert (one.identity, one.origin) == ("acme:invoice-9", "jobs.webhooks/1/2")


@pytest.mark.parametrize("count", [b"1", b"0", b"999", b"1000", b"1001", b"9999999999999999"])
def test_a_count_is_believed_up_to_its_cap(codec: Codec, count: bytes) -> None:
    one = delivered(codec, written(codec, {"attempt": count, "snoozes": count, "not-before": count}))
    assert one.attempt == min(max(int(count), 1), ATTEMPT_CAP)
    assert one.snoozes == min(int(count), SNOOZE_CAP)
    assert one.not_before is None or one.not_before.year <= 9000


@given(st.binary(max_size=20))
def test_no_header_is_an_error_of_any_other_kind(raw: bytes) -> None:
    class OneJob:
        def decode(self, data: bytes) -> dict[str, Any]:
            return {
                "jobId": "job-1", "jobType": "test.do", "organizationId": "acme", "createdAt": NOON,
                "priority": 5, "idempotencyKey": None, "orderingKey": None, "maxAttempts": None, "payload": {},
            }  # fmt: skip

    if "test.do" not in HANDLERS:
        handle(does)
    names = ("attempt", "snoozes", "not-before", "replay-id", "origin", "ce_id", "ce_type", "organization-id")
    for name in names:
        stated = envelope("job-1", "test.do", "acme", WEBHOOKS, NOON) | {name: raw}
        record = Read(WEBHOOKS.topic, 0, 0, b"acme", b"", list(stated.items()))
        try:
            one = read(WEBHOOKS, record, PartitionOffsets(WEBHOOKS.topic, 0), OneJob())
        except InvalidRecord as error:
            str(error).encode()
        else:
            assert 1 <= one.attempt <= ATTEMPT_CAP
            assert 0 <= one.snoozes <= SNOOZE_CAP
            milliseconds(one.not_before or NOON)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another id": ({"ce_id": b"job-2"}, "ce_id is b'job-2' but jobId is 'job-1'"),
    "no id": ({"ce_id": None}, "ce_id is missing; expected jobId 'job-1'"),
    "another type": ({"ce_type": b"test.undo"}, "ce_type is b'test.undo' but jobType is 'test.do'"),
    "another organization": ({"organization-id": b"globex"}, "organization-id is b'globex'"),
    "no organization": ({"organization-id": None}, "organization-id is missing"),
    "a negative count": ({"attempt": b"-1"}, "header attempt must be a whole number, got b'-1'"),
    "a count in words": ({"snoozes": b"two"}, "header snoozes must be a whole number"),
    "an endless count": ({"not-before": b"1" * 17}, "header not-before must be a whole number"),
    "other digits": ({"attempt": "١".encode()}, "header attempt must be a whole number"),
    "a replay of no kind": ({"replay-id": b"yes"}, "replay-id must be a UUIDv7 in lower case"),
    "a replay for ever": (
        {"replay-id": b"ffffffff-ffff-4fff-bfff-ffffffffffff"}, "replay-id must be a UUIDv7 in lower case",
    ),
    "too many headers": ({"x": b"x" * HEADERS_CAP}, f"more than the {HEADERS_CAP} allowed"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), REFUSED.values(), ids=REFUSED)
def test_headers_that_do_not_fit_are_refused(codec: Codec, change: dict[str, Any], sentence: str) -> None:
    record = written(codec, change)
    with pytest.raises(InvalidRecord) as refused:
        delivered(codec, record)
    assert sentence in str(refused.value)


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "priority 0": ({"priority": 0}, "priority must be 1 to 10, got 0"),
    "priority 11": ({"priority": 11}, "priority must be 1 to 10, got 11"),
    "priority below zero": ({"priority": -(2**31)}, "priority must be 1 to 10"),
    "no attempts": ({"maxAttempts": 0}, "maxAttempts must be 1 to 1000, got 0"),
    "attempts below zero": ({"maxAttempts": -1}, "maxAttempts must be 1 to 1000, got -1"),
    "attempts without end": ({"maxAttempts": 1001}, "maxAttempts must be 1 to 1000, got 1001"),
    "an empty key": ({"idempotencyKey": ""}, "idempotencyKey must have 1 to 256 characters, got 0"),
    "an endless key": (
        {"idempotencyKey": "k" * 257},
        "idempotencyKey must have 1 to 256 characters, got 257",
    ),
    "an endless order": ({"orderingKey": "k" * 257}, "orderingKey must have 1 to 256 characters"),
    "a validator with a bug": (
        {"jobType": "test.fussy", "payload": {"number": 4111}},
        "the payload of test.fussy could not be checked: KeyError",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), FIELDS.values(), ids=FIELDS)
def test_fields_out_of_range_are_refused_and_the_job_can_be_told(
    codec: Codec, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidRecord) as refused:
        delivered(codec, written(codec, **change))
    assert sentence in str(refused.value)
    assert refused.value.job is not None
    assert refused.value.job["jobId"] == "job-1"


@pytest.mark.parametrize(
    "edge", [{"priority": 1}, {"priority": 10}, {"maxAttempts": 1}, {"maxAttempts": 1000}]
)
def test_the_edges_of_the_ranges_fit(codec: Codec, edge: dict[str, int]) -> None:
    one = delivered(codec, written(codec, None, **edge))
    assert edge.items() <= {"priority": one.priority, "maxAttempts": one.max_attempts}.items()


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a" * 129, "é", "a\n"])
def test_ids_of_another_shape_are_refused(codec: Codec, name: str) -> None:
    for field in ("jobId", "organizationId"):
        with pytest.raises(InvalidRecord, match="must be 1 to 128 letters"):
            delivered(codec, written(codec, None, **{field: name}))


def test_the_key_must_be_the_organization_and_who_lies_is_not_told(codec: Codec) -> None:
    record = written(codec)
    for key in (None, b"", b"globex"):
        record.key = key
        with pytest.raises(InvalidRecord, match="the key") as refused:
            delivered(codec, record)
        assert refused.value.job is None, "an event would be told in another organization's name"


def test_a_job_type_of_another_queue_has_no_handler_here(codec: Codec) -> None:
    with pytest.raises(InvalidRecord, match=r"no handler for job type 'test\.do' on emails"):
        read(EMAILS, written(codec), PartitionOffsets(EMAILS.topic, 0), codec)


@pytest.mark.parametrize("value", [None, b"", b"garbage", b"\xc3\x01", b"\x00\x00"])
def test_what_is_no_avro_is_left_to_the_codecs_word(codec: Codec, value: bytes | None) -> None:
    record = written(codec)
    record.value = value
    with pytest.raises(NotAvro):
        delivered(codec, record)
    record.value = b"\xc3\x01" + b"8 bytes!" + b"rest"
    with pytest.raises(UnknownSchema):
        delivered(codec, record)


def test_an_origin_is_cut_and_need_not_be_text(codec: Codec) -> None:
    origin = delivered(codec, written(codec, {"origin": b"\xff" * 5000})).origin
    assert origin == "�" * ORIGIN_CAP


def test_headers_of_none_are_no_headers(codec: Codec) -> None:
    record = written(codec)
    record.headers = [*record.headers, ("attempt", None)]  # type: ignore[list-item]
    assert delivered(codec, record).attempt == 1


delays = st.tuples(
    st.sampled_from(["", REPLAY, REPLAY[:-1] + "2"]), st.integers(1, 1000), st.integers(0, 999_999)
)


@given(delays, delays)
def test_fences_order_by_replay_then_attempt_then_snoozes(
    left: tuple[str, int, int], right: tuple[str, int, int]
) -> None:
    fences = [
        delivery(replay_id=replay or None, attempt=attempt, snoozes=snoozes).fence()
        for replay, attempt, snoozes in (left, right)
    ]
    assert (fences[0] < fences[1]) == (left < right)
    assert (fences[0] == fences[1]) == (left == right)


@given(delays)
def test_the_fence_of_the_dead_lets_only_later_replays_pass(one: tuple[str, int, int]) -> None:
    replay, attempt, snoozes = one
    dead = fence(replay, attempt, snoozes) + "~"
    assert fence(replay, attempt, snoozes) < dead
    assert fence(REPLAY[:-1] + "9", 1, 0) > dead


@given(st.datetimes(timezones=st.just(UTC)).filter(lambda instant: instant.year < 9999))
def test_milliseconds_are_never_early_and_less_than_one_late(instant: datetime) -> None:
    written_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds(instant))
    assert timedelta(0) <= written_at - instant < timedelta(milliseconds=1)


@given(st.text(st.characters()))
def test_header_texts_are_always_bytes_and_capped(text: str) -> None:
    header_text(text).decode()
    assert len(header_text(text, 10)) <= 40


def test_carried_headers_keep_what_others_wrote_and_replace_the_state() -> None:
    one = delivery(
        headers={"traceparent": b"00-1", "not-before": b"5", "attempt": b"1", "reason": b"old", "copy": b"1"},
        origin="jobs.emails/0/1",
    )
    headers = dict(next_headers(one, attempt=2, snoozes=3, reason="why", extra=[("failed-at", "7")]))
    assert headers == {
        "traceparent": b"00-1", "attempt": b"2", "snoozes": b"3", "reason": b"why", "queue": b"emails",
        "origin": b"jobs.emails/0/1", "failed-at": b"7",
    }  # fmt: skip
    assert one.headers["attempt"] == b"1", "the delivery itself is unchanged"


def test_what_is_carried_fits_into_its_queue_again(codec: Codec) -> None:
    """The room that topics leave for headers is enough for the largest record that is not refused."""
    from streams.topics import _RECORD_BYTES

    stated = {"x": b"x" * (HEADERS_CAP - 400)}
    one = delivered(codec, written(codec, stated))
    long = "é" * 5000
    carried = next_headers(
        one, attempt=1000, snoozes=SNOOZE_CAP, reason=long, not_before=NOON,
        extra=[("error-kind", long), ("error-message", long), ("failed-at", "1772366400123")],
    )  # fmt: skip
    size = sum(len(name) + len(value or b"") for name, value in carried)
    assert 1024 * 1024 + size + 1024 <= _RECORD_BYTES
