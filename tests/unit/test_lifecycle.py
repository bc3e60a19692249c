"""Events: they fit their schema whatever is in them, and show no secret."""

import json
import re
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_serializer

from schemas import Codec, files
from streams.jobs import Payload
from streams.lifecycle import INPUT_CAP, Lifecycle, event_id, visible
from streams.outcome import Attempt, Failure
from streams.queues import LIFECYCLE_TOPIC
from tests.deliveries import NOON, delivery, handler
from tests.rig import Do

CODEC = Codec(files.current(files.LIFECYCLE))
LIFECYCLE = Lifecycle(CODEC, worker_id="worker-1", host="host-1")


def told(**facts: Any) -> dict[str, Any]:
    kind, changes = facts.pop("kind", "completed"), facts.pop("changes", {})
    one = delivery(handler=handler(lambda job: None), **changes)
    message = LIFECYCLE.of(kind, one, NOON, **facts)
    assert (message.topic, message.key) == (LIFECYCLE_TOPIC, one.job_id.encode())
    return CODEC.decode(message.value or b"")


def test_an_event_says_when_its_attempt_began_and_what_it_took() -> None:
    began = NOON - timedelta(seconds=2)
    end = told(started_at=began, attempt=Attempt(cpu_ms=3.5, memory_bytes=9), memory_bytes=8)
    assert (end["startedAt"], end["at"]) == (began, NOON)
    assert (end["cpuTimeMs"], end["memoryBytes"]) == (3.5, 9)
    start = told(kind="started", started_at=began, memory_bytes=8)
    assert (start["startedAt"], start["at"]) == (began, NOON)
    assert start["memoryBytes"] == 8


@given(reason=st.text(st.characters(), max_size=3000), error=st.text(st.characters(), max_size=3000))
def test_any_text_fits(reason: str, error: str) -> None:
    event = told(kind="dead", reason=reason, failure=Failure.named("Odd", error))
    assert len(event["reason"] or "") <= 2000
    assert event["error"]["kind"] == "Odd"


def test_the_largest_event_fits_into_its_topic() -> None:
    wide = "\U0001f600"
    event = LIFECYCLE.of(
        "dead",
        delivery(
            handler=handler(lambda job: None),
            payload=Do(data=wide.encode() * 100_000),
            origin=wide * 512,
            job_id="j" * 128,
        ),
        NOON,
        reason=wide * 100_000,
        failure=Failure("K" * 500, wide * 2000, wide * 8000, "f"),
        output=wide * 16_000,
    )
    assert len(event.value or b"") < 500_000


def test_an_input_is_told_once_and_by_those_who_have_not_told_it() -> None:
    foreign = told(changes={"headers": {"ce_source": b"/elsewhere"}, "payload": Do(number=7)})
    assert json.loads(foreign["input"]) == {"number": 7, "data": ""}
    assert told(changes={"headers": {"ce_source": b"/streams"}})["input"] is None


class Broken(Payload):
    """A payload that cannot be written as JSON."""

    number: int = 0

    @field_serializer("number")
    def _write(self, number: int) -> int:
        raise KeyError(number)


def test_inputs_are_shown_without_secrets_and_cut() -> None:
    assert visible(Do(number=1, data=b"\xff\xfe", password="hunter2")) == '{"number":1,"data":"__4="}'
    assert visible(Do(data=b"x" * INPUT_CAP)).startswith('{"truncated":true,"length":')
    assert visible(Broken()) == '{"unreadable":true}'


def test_event_ids_are_uuid7_grow_with_time_and_differ() -> None:
    before = int(time.time() * 1000)
    ids = [event_id() for _ in range(2000)]
    after = int(time.time() * 1000)
    assert len(set(ids)) == 2000
    for one in ids:
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one)
        assert before <= int(one.replace("-", "")[:12], 16) <= after


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_a_job_may_state_any_instant(year: int) -> None:
    stated = NOON.replace(year=year)
    assert told(changes={"created_at": stated})["queuedAt"] == stated
