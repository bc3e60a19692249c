"""The sink killed, frozen, stopped and cut off from its database: the rows stay exact."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from sqlalchemy import Engine

import devstack
from tests.integration.lifecycle import (
    Topics,
    event_ids,
    events,
    expected_rows,
    lives,
    migrated_database,
    record,
    running,
    stored_events,
    stored_rows,
    wait_until,
)
from tracking.database import Fenced
from tracking.store import Store

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tables(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        yield engine


@pytest.fixture
def topics(stack: devstack.Stack) -> Topics:
    return Topics.make(stack.kafka, partitions=2)


class Processes:
    """Sinks in processes of their own, all ended at the end of the test."""

    def __init__(self, topics: Topics, database: Engine) -> None:
        url = database.url.render_as_string(hide_password=False)
        self.arguments = [topics.name, topics.kafka["bootstrap.servers"], url]
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *, dies_after_commits: int | None = None) -> subprocess.Popen[bytes]:
        more = [] if dies_after_commits is None else [str(dies_after_commits)]
        command = [sys.executable, "-m", "tests.integration.sink_process", *self.arguments, *more]
        self.started.append(subprocess.Popen(command, cwd=ROOT))
        return self.started[-1]


@pytest.fixture
def processes(topics: Topics, tables: Engine) -> Iterator[Processes]:
    processes = Processes(topics, tables)
    yield processes
    for process in processes.started:
        process.kill()
        process.wait()


def test_killed_between_its_commit_and_anything_else_it_repeats_and_loses_nothing(
    topics: Topics, tables: Engine, processes: Processes
) -> None:
    told = lives(150, seed=11)
    topics.publish(told)
    for commits in (1, 3):
        assert processes.start(dies_after_commits=commits).wait(60) == -signal.SIGKILL
        assert not topics.settled(tables, len(told))()
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(told)), "everything is read")
    assert stored_rows(tables) == expected_rows(told)
    assert stored_events(tables) == event_ids(told)


def test_killed_at_any_moment_it_loses_nothing(topics: Topics, tables: Engine, processes: Processes) -> None:
    told = lives(1_000, seed=12)
    topics.publish(told)
    for share in (0.2, 0.5):
        process = processes.start()
        wait_until(topics.settled(tables, int(len(told) * share)), f"{share:.0%} is read")
        process.kill()
        process.wait()
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(told)), "everything is read")
    assert stored_rows(tables) == expected_rows(told)
    assert stored_events(tables) == event_ids(told)


def test_a_terminated_sink_finishes_its_transaction_and_exits_0(
    topics: Topics, tables: Engine, processes: Processes
) -> None:
    told = lives(1_000, seed=13)
    topics.publish(told)
    process = processes.start()
    wait_until(topics.settled(tables, 1), "it works")
    process.terminate()
    assert process.wait(10) == 0
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(told)), "the next one reads the rest")
    assert stored_rows(tables) == expected_rows(told)


def test_postgres_killed_while_it_reads_costs_nothing(
    stack: devstack.Stack, topics: Topics, tables: Engine
) -> None:
    told = lives(400, seed=14)
    parts = [told[start::4] for start in range(4)]
    with running(topics.sink(tables, batch=50)):
        topics.publish(parts[0])
        wait_until(topics.settled(tables, 1), "it works")
        topics.publish(parts[1])
        stack.service("postgres").kill()
        topics.publish(parts[2])
        stack.service("postgres").start()
        topics.publish(parts[3])
        tables.dispose()
        wait_until(topics.settled(tables, len(told)), "it catches up")
    assert stored_rows(tables) == expected_rows(told)
    assert stored_events(tables) == event_ids(told)


def test_it_keeps_its_place_in_the_group_while_postgres_is_away(
    stack: devstack.Stack, topics: Topics, tables: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with running(topics.sink(tables)):
        topics.publish([record("queued", "before")])
        wait_until(topics.settled(tables, 1), "it works")
        stack.service("postgres").kill()
        topics.publish([record("queued", "after")])
        wait_until(lambda: caplog.text.count("cannot be reached") >= 4, "it tries again and again")
        stack.service("postgres").start()
        tables.dispose()
        wait_until(topics.settled(tables, 2), "it catches up")
    joined = [line for line in caplog.messages if "joining the group again" in line]
    assert not joined
    assert "secret" not in caplog.text


def test_a_sink_that_was_taken_over_cannot_write(topics: Topics, tables: Engine) -> None:
    zombie, heir = Store(tables), Store(tables)
    place = (topics.name, 0)
    old = zombie.claim([place])[place]
    zombie.commit(events([record("queued", "job-1")]), {place: 1}, {place: old.epoch})
    new = heir.claim([place])[place]
    assert (new.position, new.epoch) == (1, old.epoch + 1)
    before = stored_rows(tables)
    with pytest.raises(Fenced):
        zombie.commit(events([record("queued", "job-2")]), {place: 2}, {place: old.epoch})
    assert stored_rows(tables) == before
    assert heir.positions(topics.name) == {0: 1}
    heir.commit(events([record("queued", "job-2")]), {place: 2}, {place: new.epoch})
    assert heir.positions(topics.name) == {0: 2}


def test_a_sink_frozen_until_it_lost_its_partitions_comes_back_and_spoils_nothing(
    topics: Topics, tables: Engine, processes: Processes
) -> None:
    told = lives(1_500, seed=15)
    topics.publish(told)
    frozen = processes.start()
    wait_until(topics.settled(tables, 1), "it works")
    frozen.send_signal(signal.SIGSTOP)
    position = sum(Store(tables).positions(topics.name).values())
    assert position < len(told)
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, len(told)), "the other one reads everything")
        rows = stored_rows(tables)
        frozen.send_signal(signal.SIGCONT)
        more = lives(20, seed=16)
        topics.publish(more)
        wait_until(topics.settled(tables, len(told) + len(more)), "the two go on")
    assert rows == expected_rows(told)
    assert stored_rows(tables) == expected_rows(told + more)
    assert frozen.poll() is None
    frozen.terminate()
    assert frozen.wait(10) == 0


def test_lag_can_be_seen_by_kafka_tools(topics: Topics, tables: Engine) -> None:
    topics.write([(b"k", b"poison")] * 3, partition=0)
    with running(topics.sink(tables)):
        wait_until(topics.settled(tables, 3), "everything is read")
    consumer = Consumer({**topics.kafka, "group.id": topics.name})
    (committed,) = consumer.committed([TopicPartition(topics.name, 0)], 10)
    consumer.close()
    assert committed.offset == 3
