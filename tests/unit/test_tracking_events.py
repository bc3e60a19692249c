"""What the store takes in is what PostgreSQL can hold."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import open_codec
from tracking.events import KINDS, InvalidEvent, UnknownKind, clean, clean_json, event_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def record(**facts: Any) -> dict[str, Any]:
    codec = open_codec("lifecycle")
    stated = {
        "eventId": "01960000-0000-7000-8000-000000000001",
        "kind": "queued",
        "at": NOON,
        "queuedAt": NOON,
        "jobId": "job",
        "jobType": "email.send",
        "queue": "emails",
        "organizationId": "acme",
        "attempt": 1,
        "maxAttempts": 5,
    }
    return codec.decode(codec.encode({**stated, **facts}))


def test_kinds_are_those_of_the_schema() -> None:
    (kind,) = (f["type"] for f in open_codec("lifecycle").schema["fields"] if f["name"] == "kind")
    assert set(kind["symbols"]) == set(KINDS)


def test_a_decoded_record_is_an_event() -> None:
    event = event_of(
        record(kind="dead", error={"kind": "E", "message": "m\0", "stack": None, "fingerprint": "f"})
    )
    assert (event.kind, event.job_id, event.at.tzinfo) == ("dead", "job", UTC)
    assert event.error is not None
    assert event.error.message == "m�"


def test_numbers_that_are_not_finite_become_null_and_negative_durations_zero() -> None:
    event = event_of(record(cpuTimeMs=-3.0, progress=math.inf))
    assert (event.cpu_time_ms, event.progress) == (0.0, None)
    assert event_of(record(cpuTimeMs=math.nan)).cpu_time_ms is None


def test_the_end_of_an_attempt_says_how_long_it_took() -> None:
    began = NOON - timedelta(seconds=2)
    end = event_of(record(kind="retried", startedAt=began))
    assert (end.finished_at, end.duration_ms) == (NOON, 2000)
    skewed = event_of(record(kind="completed", startedAt=NOON + timedelta(seconds=1)))
    assert (skewed.finished_at, skewed.duration_ms) == (NOON, 0)
    for kind in ("started", "progressed"):
        going_on = event_of(record(kind=kind, startedAt=began))
        assert (going_on.finished_at, going_on.duration_ms) == (None, None)
    never_ran = event_of(record(kind="cancelled"))
    assert (never_ran.finished_at, never_ran.duration_ms, never_ran.worker_id) == (None, None, None)


def test_a_record_of_another_shape_is_no_event() -> None:
    with pytest.raises(InvalidEvent):
        event_of({"kind": "queued", "jobId": "job"})
    with pytest.raises(InvalidEvent):
        event_of(record() | {"jobId": None})


def test_a_kind_that_only_a_newer_reader_knows_is_not_buried() -> None:
    with pytest.raises(UnknownKind):
        event_of(record() | {"kind": "exploded"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1.10}', {"a": 1.1}),
        ('"a\\u0000b"', "a�b"),
        ('{"k\\u0000": "\\ud800x"}', {"k�": "�x"}),
        ('"\\ud83d\\ude00 stays"', "😀 stays"),
        ('[NaN, Infinity, -Infinity, 1e999999]', ["NaN", "Infinity", "-Infinity", "Infinity"]),
        ('"NaN in a text"', "NaN in a text"),
        ('{"cut": "of', '{"cut": "of'),
        ("\0", "�"),
    ],
)  # fmt: skip
def test_json_says_the_same_in_what_jsonb_takes(text: str, expected: object) -> None:
    cleaned = clean_json(text)
    assert cleaned is not None
    assert json.loads(cleaned) == expected


def test_json_that_needs_no_cleaning_keeps_its_digits() -> None:
    text = '{"amount": 12345678901234567890.123456789012345678}'
    assert clean_json(text) == text
    assert clean_json(None) is None


def test_json_nested_too_deeply_becomes_a_text() -> None:
    text = "[" * 100_000
    assert json.loads(clean_json(text) or "") == text


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_stored_and_is_cleaned_once(text: str) -> None:
    cleaned = clean(text)
    assert "\0" not in cleaned
    cleaned.encode("utf-8")
    assert clean(cleaned) == cleaned
    assert len(cleaned) == len(text)
