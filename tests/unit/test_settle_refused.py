"""Records that cannot be run: buried with their bytes unchanged, or put off until their schema is known."""

from datetime import timedelta
from typing import Any

import pytest

from schemas import Codec
from schemas.canonical import fingerprint
from streams.codecs import schema_of
from streams.delivery import HEADERS_CAP
from streams.jobs import Job
from streams.queues import WEBHOOKS
from tests.rig import Do, Rig, eventually, handle, headers_of

pytestmark = pytest.mark.usefixtures("no_handlers")

HOUR = timedelta(hours=1)


async def does(job: Job[Do]) -> None:
    return None


GARBAGE = [b"", None, b"garbage", b"\xc3\x01", b"{}" * 1000]


@pytest.mark.parametrize("value", GARBAGE)
@pytest.mark.parametrize("key", [b"acme", b"\xff\xfe", None])
async def test_bytes_that_are_no_job_are_buried_unchanged_and_the_partition_goes_on(
    value: bytes | None, key: bytes | None
) -> None:
    handle(does)
    async with Rig() as rig:
        rig.put_bytes(WEBHOOKS, key, value, {"x": b"\xff", "ce_id": b"job-1"})
        rig.put(Do(), job_id="next")
        await rig.settled()
        (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
        assert (letter.key, letter.value) == (key, value)
        headers = dict(letter.headers or [])
        assert headers["x"] == b"\xff"
        assert headers["reason"] == b"invalid record"
        assert headers["error-kind"] == b"NotAvro"
        assert headers["origin"] == b"jobs.webhooks/0/0"
        assert [one["jobId"] for one in rig.events()] == ["next"], (
            "nobody is told of a job that nobody proved"
        )


async def test_a_job_whose_organization_is_proven_is_told_as_dead() -> None:
    handle(does)
    async with Rig() as rig:
        rig.put(Do(), job_id="job-1", priority=11)
        await rig.settled()
        (event,) = rig.events()
        assert (event["kind"], event["jobId"], event["organizationId"]) == ("dead", "job-1", "acme")
        assert event["error"]["message"] == "priority must be 1 to 10, got 11"
        (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
        assert headers_of(letter)["error-message"] == "priority must be 1 to 10, got 11"


async def test_the_job_of_another_organization_is_buried_and_told_to_nobody() -> None:
    handle(does)
    async with Rig() as rig:
        queue, value, headers = rig.record(Do(), organization="acme")
        rig.put_bytes(queue, b"globex", value, headers)
        await rig.settled()
        assert len(rig.written(WEBHOOKS.dead_letter_topic)) == 1
        assert rig.events() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": b"\xff" * 500_000},
        {"x": b"x" * (HEADERS_CAP + 1)},
        {"not-before": b"9" * 16},
        {"unknown-schema-since": b"9" * 15},
        {"replay-id": b"\xff"},
        {"attempt": "١".encode()},
        {"": b""},
    ],
    ids=lambda headers: next(iter(headers)) or "nameless",
)
async def test_no_header_ends_the_worker(headers: dict[str, bytes]) -> None:
    handle(does)
    async with Rig() as rig:
        for value in (b"garbage", b"\xc3\x01unknown.", None):
            rig.put_bytes(WEBHOOKS, b"acme", value, headers)
        rig.put(Do(), headers=headers)
        rig.put(Do(), job_id="next")
        await rig.settled()
        assert rig.events()[-1]["jobId"] == "next"
        assert all(len(one.value or b"") < 20_000 for one in rig.written("jobs.lifecycle"))


def broken_decode(data: bytes) -> dict[str, Any]:
    raise KeyError("jobId")


async def test_a_reader_that_fails_in_an_unforeseen_way_buries_the_record(
    monkeypatch: pytest.MonkeyPatch, expected_errors: Any
) -> None:
    expected_errors.add("jobs.webhooks/0 could not be read")
    handle(does)
    async with Rig() as rig:
        with monkeypatch.context() as broken:
            broken.setattr(rig.codecs[WEBHOOKS.name], "decode", broken_decode)
            rig.put(Do())
        rig.put(Do(), job_id="next")
        await rig.settled()
        assert len(rig.written(WEBHOOKS.dead_letter_topic)) == 1
        assert [one["jobId"] for one in rig.events()] == ["next"]


class Schemas:
    """The codec of a producer that is ahead."""

    def __init__(self) -> None:
        schema = schema_of(WEBHOOKS)
        (record,) = next(one for one in schema["fields"] if one["name"] == "payload")["type"]
        record["fields"].append({"name": "note", "type": "string", "default": "", "doc": ""})
        self.schema = schema
        self.codec = Codec(schema)


def ahead(rig: Rig, schemas: Schemas, **headers: bytes) -> None:
    _, value, stated = rig.record(Do(), job_id="job-1")
    job = rig.codecs[WEBHOOKS.name].decode(value)
    job["payload"]["note"] = "new"
    stated |= {name.replace("_", "-"): raw for name, raw in headers.items()}
    rig.put_bytes(WEBHOOKS, b"acme", schemas.codec.encode(job), stated)


async def test_an_unknown_schema_is_put_off_and_run_when_it_is_known() -> None:
    handle(does)
    async with Rig(options={"unknown_schema_delay": timedelta(minutes=2)}) as rig:
        schemas = Schemas()
        ahead(rig, schemas)
        await rig.settled()
        (carried,) = rig.carried()
        assert carried.topic == "jobs.retry.2m"
        headers = headers_of(carried)
        assert "attempt" not in headers, "no attempt is spent, and none is stated"
        assert fingerprint(schemas.schema).hex() in headers["reason"]
        assert rig.events() == []
        rig.clock.ahead += timedelta(minutes=2)
        rig.codecs[WEBHOOKS.name]._learn(schemas.codec.header, schemas.schema)
        rig.put_again(carried)
        await rig.settled()
        assert rig.kinds() == ["completed"]


async def test_it_is_buried_after_its_time_counted_from_the_first_reading() -> None:
    handle(does)
    async with Rig() as rig:
        schemas = Schemas()
        ahead(rig, schemas)
        await rig.settled()
        since = headers_of(rig.carried()[0])["unknown-schema-since"]
        for _ in range(23):
            rig.clock.ahead += HOUR
            rig.put_again(rig.carried()[-1])
            await rig.settled()
            assert headers_of(rig.carried()[-1])["unknown-schema-since"] == since
        assert rig.written(WEBHOOKS.dead_letter_topic) == []
        rig.clock.ahead += 2 * HOUR
        rig.put_again(rig.carried()[-1])
        await rig.settled()
        (letter,) = rig.written(WEBHOOKS.dead_letter_topic)
        assert headers_of(letter)["error-kind"] == "UnknownSchema"


@pytest.mark.parametrize("since", [b"9" * 15, b"9" * 20, b"soon", b"-1"])
async def test_nobody_can_state_a_start_that_makes_the_wait_endless(since: bytes) -> None:
    handle(does)
    async with Rig() as rig:
        ahead(rig, Schemas(), unknown_schema_since=since)
        await rig.settled()
        stated = int(headers_of(rig.carried()[0])["unknown-schema-since"])
        assert abs(stated - rig.clock().timestamp() * 1000) < 10_000


async def test_a_due_time_further_ahead_is_kept() -> None:
    handle(does)
    async with Rig() as rig:
        due_ms = int((rig.clock() + 2 * HOUR).timestamp() * 1000)
        ahead(rig, Schemas(), not_before=b"%d" % due_ms)
        await rig.settled()
        (carried,) = rig.carried()
        assert carried.topic == "jobs.retry.1h"
        assert headers_of(carried)["not-before"] == str(due_ms)


async def test_the_schema_that_turns_up_is_found_while_the_worker_runs() -> None:
    handle(does)
    async with Rig() as rig:
        schemas = Schemas()
        looked: list[bytes] = []

        def look(header: bytes) -> Any:
            looked.append(header)
            return schemas.schema

        codec = rig.codecs[WEBHOOKS.name]
        codec._lookup = look
        ahead(rig, schemas)
        await eventually(lambda: not codec.missing)
        assert looked == [schemas.codec.header]
