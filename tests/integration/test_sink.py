"""The sink on a real broker and a real database: rows equal the fold, whatever comes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

import devstack
from schemas import Codec, files
from tests.integration.lifecycle import (
    CODEC,
    Topics,
    dump,
    event_ids,
    expected_rows,
    lives,
    migrated_database,
    record,
    running,
    stored_events,
    stored_rows,
    wait_until,
)
from tracking.rebuild import rebuild
from tracking.store import Store

pytestmark = pytest.mark.stack


@pytest.fixture
def tables(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        yield engine


@pytest.fixture
def topics(stack: devstack.Stack) -> Topics:
    return Topics.make(stack.kafka)


def test_shuffled_and_repeated_events_make_the_rows_of_their_fold(topics: Topics, tables: Engine) -> None:
    told = lives(300, seed=1)
    topics.publish(told)
    with running(topics.sink(tables, batch=100)):
        wait_until(topics.settled(tables, len(told)), "everything is read")
    assert stored_rows(tables) == expected_rows(told)
    assert stored_events(tables) == event_ids(told)


def test_two_sinks_share_the_partitions_and_one_takes_over_when_the_other_leaves(
    topics: Topics, tables: Engine
) -> None:
    told = lives(300, seed=2)
    half = len(told) // 2
    with running(topics.sink(tables, batch=50)):
        topics.publish(told[:half])
        with running(topics.sink(tables, batch=50)):
            wait_until(topics.settled(tables, half), "the first half is read")
            topics.publish(told[half:])
        wait_until(topics.settled(tables, len(told)), "everything is read")
    assert stored_rows(tables) == expected_rows(told)


def test_what_is_no_event_is_a_dead_letter_and_the_rest_goes_on(topics: Topics, tables: Engine) -> None:
    good = [record("queued", f"job-{number}") for number in range(20)]
    topics.publish(good[:10])
    poison = [b"", b"no avro at all", CODEC.encode(good[0])[:-3], CODEC.encode(good[0]) + b"!"]
    topics.write([(b"k", value) for value in poison], partition=0, headers=[("trace", b"1")])
    topics.publish(good[10:])
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, 20 + len(poison)), "everything is read")
        letters = topics.dead(len(poison))
    assert stored_rows(tables) == expected_rows(good)
    assert sorted(letter.value() or b"" for letter in letters) == sorted(poison)


def test_a_dead_letter_keeps_key_bytes_and_headers_and_says_why(topics: Topics, tables: Engine) -> None:
    topics.write([(b"key", b"no avro at all")], partition=1, headers=[("trace", b"1"), ("reason", b"mine")])
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, 1), "the record is passed")
    (letter,) = topics.dead(1)
    assert (letter.key(), letter.value()) == (b"key", b"no avro at all")
    *own, reason, origin = letter.headers() or []
    assert own == [("trace", b"1"), ("reason", b"mine")]
    assert reason[0] == "reason"
    assert b"marker" in (reason[1] or b"")
    assert origin == ("origin", f"{topics.name}/1/0".encode())


def test_an_event_the_database_refuses_is_a_dead_letter_and_its_batch_is_written(
    topics: Topics, tables: Engine
) -> None:
    good = [record("queued", f"job-{number}") for number in range(200)]
    refused = [
        record("queued", "secret-job", attempt=0),
        record("queued", "secret-job", eventId="secret-no-uuid"),
        record("progressed", "secret-job", progress=1.5),
        record("queued", "secret-job", organizationId=""),
    ]
    mixed = good[:50] + refused[:2] + good[50:120] + refused[2:] + good[120:]
    topics.write([(b"k", CODEC.encode(each)) for each in mixed], partition=0)
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(mixed)), "everything is read")
    letters = topics.dead(len(refused))
    assert [letter.value() for letter in letters] == [CODEC.encode(each) for each in refused]
    assert stored_rows(tables) == expected_rows(good)
    assert stored_events(tables) == event_ids(good)
    reasons = [dict(letter.headers() or [])["reason"] or b"" for letter in letters]
    assert b"job_executions_counts" in reasons[0]
    assert b"22P02" in reasons[1]
    assert not any(b"secret" in reason for reason in reasons)


def test_what_postgres_cannot_hold_is_cleaned(topics: Topics, tables: Engine) -> None:
    told = [
        record(
            "queued", "nul\0job", input='{"a\\u0000": "\\ud800", "n": NaN, "big": 1e999999}', reason="a\0b"
        ),
        record(
            "completed",
            "cut",
            output='{"cut": "of',
            startedAt=record("x", "y")["at"],
            cpuTimeMs=float("nan"),
        ),
    ]
    topics.publish(told)
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, 2), "everything is read")
    cut, nul = stored_rows(tables)
    assert (nul["job_id"], nul["reason"]) == ("nul�job", "a�b")
    assert nul["input"] == {"a�": "�", "n": "NaN", "big": "Infinity"}
    assert (cut["output"], cut["cpu_time_ms"]) == ('{"cut": "of', None)


def test_an_unknown_schema_holds_its_partition_and_no_other_until_it_is_known(
    topics: Topics, tables: Engine, tmp_path: Path
) -> None:
    newer: dict[str, Any] = json.loads(json.dumps(CODEC.schema))
    newer["fields"].append({"name": "region", "type": ["null", "string"], "default": None})
    writer = Codec(newer)
    held = [record("queued", f"held-{number}") for number in range(5)]
    free = [record("queued", f"free-{number}") for number in range(50)]
    topics.write([(b"k", CODEC.encode(each)) for each in held[:2]], partition=0)
    topics.write([(b"k", writer.encode(held[2]))], partition=0)
    topics.write([(b"k", CODEC.encode(each)) for each in held[3:]], partition=0)
    topics.write([(b"k", CODEC.encode(each)) for each in free], partition=1)
    codec = Codec(
        CODEC.schema,
        lookup=lambda header: files.find("lifecycle", header[2:], tmp_path),
        lookup_every=topics.settings().schema_wait / 2,
    )
    with running(topics.sink(tables, codec, batch=10)):
        wait_until(topics.settled(tables, 52), "all but what is behind the unknown is read")
        assert Store(tables).positions(topics.name)[0] == 2
        files.write("lifecycle", newer, tmp_path)
        wait_until(topics.settled(tables, 55), "everything is read")
    assert stored_rows(tables) == expected_rows(held + free)


def test_rebuilding_gives_the_same_rows(topics: Topics, tables: Engine) -> None:
    told = lives(300, seed=3)
    topics.publish(told)
    topics.write([(b"k", b"poison")])
    with running(topics.sink(tables, batch=37)):
        wait_until(topics.settled(tables, len(told) + 1), "everything is read")
    before = dump(tables)
    with tables.begin() as connection:
        connection.execute(text("UPDATE job_executions SET status = 'queued', finished_at = NULL"))
        connection.execute(text("DELETE FROM lifecycle_events WHERE attempt = 2"))
    assert dump(tables) != before
    read = rebuild(Store(tables), topics.sink(tables, batch=500), topics.kafka, topics.name)
    assert read == len(told) + 1
    assert dump(tables) == before


def test_rebuilding_takes_the_work_from_a_running_sink_and_shares_it(topics: Topics, tables: Engine) -> None:
    told = lives(200, seed=4)
    topics.publish(told)
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(told)), "everything is read")
        before = dump(tables)
        rebuild(Store(tables), topics.sink(tables), topics.kafka, topics.name)
        assert dump(tables) == before
        later = lives(210, seed=4)
        topics.publish(later)
        wait_until(topics.settled(tables, len(told) + len(later)), "the sink goes on")
    assert stored_rows(tables) == expected_rows(told + later)


def test_the_sink_waits_for_a_topic_that_is_made_later(
    stack: devstack.Stack, topics: Topics, tables: Engine
) -> None:
    later = Topics(
        {"bootstrap.servers": stack.kafka, "topic.metadata.refresh.interval.ms": 500}, f"{topics.name}.2", 1
    )
    with running(later.sink(tables)):
        later.create()
        later.publish([record("queued", "job")])
        wait_until(later.settled(tables, 1), "the topic is read")
