"""What the tests of the sink share: lives of jobs as records, topics of their own, a sink in a thread."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from confluent_kafka import Consumer, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from sqlalchemy import Engine, NullPool, create_engine, make_url, text

from schemas import Codec, open_codec
from tracking.database import open_database
from tracking.events import Event, event_of
from tracking.fold import Row, fold
from tracking.migrate import upgrade
from tracking.sink import Sink, SinkSettings
from tracking.store import Store

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
CODEC = open_codec("lifecycle")
Record = dict[str, Any]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def record(kind: str, job: str, seconds: float = 0, **facts: Any) -> Record:
    """Return an event as its producer states it."""
    return {
        "eventId": str(uuid4()),
        "kind": kind,
        "at": at(seconds),
        "jobId": job,
        "jobType": "document.ocr",
        "queue": "document-processing",
        "organizationId": "acme",
        "attempt": 1,
        "maxAttempts": 3,
        "queuedAt": START,
        **facts,
    }


def life_of(job: str, chance: random.Random) -> list[Record]:
    """Return the events of one job from its publish to some end."""
    organization = chance.choice(["acme", "globex", "initech"])
    common: Record = {
        "organizationId": organization,
        "workerId": f"w{chance.randrange(3)}",
        "workerHost": "h",
    }
    told = [
        record("queued", job, 0, organizationId=organization, input=json.dumps({"page": chance.random()}))
    ]
    second = 1.0
    for attempt in range(1, 4):
        second += chance.random()
        run: Record = {**common, "attempt": attempt, "startedAt": at(second)}
        told.append(record("started", job, second, **run))
        second += chance.random()
        end: Record = {**run, "memoryBytes": 2**33}
        if chance.random() < 0.6:
            return [*told, record("completed", job, second, **end, output='{"pages": 3}')]
        end["error"] = {
            "kind": chance.choice(["TimeoutError", "ValueError"]), "message": f"{job} failed", "stack": "at ...",
            "fingerprint": chance.choice(["f1", "f2"]),
        }  # fmt: skip
        kind = "retried" if attempt < 3 else "dead"
        told.append(record(kind, job, second, **end, notBefore=at(second + 5) if attempt < 3 else None))
        second += 6
    return told


def lives(count: int, seed: int) -> list[Record]:
    """Return the events of many jobs, shuffled, one in five twice."""
    chance = random.Random(seed)
    told = [event for number in range(count) for event in life_of(f"job-{number}", chance)]
    told += chance.sample(told, len(told) // 5)
    chance.shuffle(told)
    return told


def events(records: Sequence[Record]) -> list[Event]:
    return [event_of(CODEC.decode(CODEC.encode(each))) for each in records]


def expected_rows(records: Sequence[Record]) -> list[Row]:
    return [comparable(row) for row in fold(events(records))]


def stored_rows(database: Engine) -> list[Row]:
    with database.connect() as connection:
        found = connection.execute(text("SELECT * FROM job_executions"))
        rows = [dict(row._mapping) for row in found]
    for row in rows:
        assert row.pop("job_name") == row["job_type"]
    return sorted(rows, key=lambda row: (row["organization_id"], row["job_id"]))


def comparable(row: Row) -> Row:
    parsed = {name: row[name] and json.loads(row[name]) for name in ("input", "output")}
    return row | parsed


def stored_events(database: Engine) -> set[UUID]:
    with database.connect() as connection:
        return set(connection.execute(text("SELECT event_id FROM lifecycle_events")).scalars())


def event_ids(records: Sequence[Record]) -> set[UUID]:
    return {UUID(each["eventId"]) for each in records}


def dump(database: Engine) -> list[str]:
    """Return all rows of the store as text, in the order of their keys."""
    with database.connect() as connection:
        return [
            str(line)
            for table, key in (
                ("job_executions", "organization_id, job_id"),
                ("lifecycle_events", "event_id"),
            )
            for line in connection.execute(text(f"SELECT t::text FROM {table} t ORDER BY {key}")).scalars()
        ]


def wait_until(condition: Callable[[], bool], what: str, within: timedelta = timedelta(seconds=60)) -> None:
    deadline = time.monotonic() + within.total_seconds()
    while not condition():
        assert time.monotonic() < deadline, f"after {within}: {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Topics:
    """A lifecycle topic of this test's own, and its dead-letter topic."""

    kafka: dict[str, Any]
    name: str
    partitions: int

    @classmethod
    def make(cls, bootstrap: str, partitions: int = 3) -> "Topics":
        topics = cls({"bootstrap.servers": bootstrap}, f"test.{uuid4().hex}", partitions)
        topics.create()
        return topics

    def create(self) -> None:
        new = [NewTopic(self.name, self.partitions, 1), NewTopic(self.dead_letters, 1, 1)]
        # Named, because its answers die with it.
        admin = AdminClient({"bootstrap.servers": self.kafka["bootstrap.servers"]})
        for created in admin.create_topics(new).values():
            created.result(30)

    @property
    def dead_letters(self) -> str:
        return f"{self.name}.dlt"

    def publish(self, records: Sequence[Record], codec: Codec = CODEC) -> None:
        self.write([(each["jobId"].encode(), codec.encode(each)) for each in records])

    def write(
        self,
        values: Sequence[tuple[bytes, bytes]],
        *,
        partition: int = -1,
        headers: list[tuple[str, str | bytes | None]] | None = None,
    ) -> None:
        producer = Producer({**self.kafka, "partitioner": "murmur2_random", "linger.ms": 5})
        for key, value in values:
            producer.produce(self.name, value, key, partition, headers=headers)
            producer.poll(0)
        assert producer.flush(30) == 0

    def dead(self, count: int) -> list[Message]:
        """Return the dead letters once there are as many as expected; one more would be returned, too."""
        consumer = Consumer({**self.kafka, "group.id": uuid4().hex, "auto.offset.reset": "earliest"})
        consumer.subscribe([self.dead_letters])
        found: list[Message] = []
        deadline = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline:
            found += consumer.consume(100, 0.2)
        found += consumer.consume(100, 0.5)
        consumer.close()
        return found

    def settings(self, **others: Any) -> SinkSettings:
        quick = {"linger": timedelta(milliseconds=50), "schema_wait": timedelta(milliseconds=200)}
        return SinkSettings(self.name, self.dead_letters, group=self.name, **(quick | others))

    def sink(self, database: Engine, codec: Codec = CODEC, **others: Any) -> Sink:
        return Sink(Store(database), codec, self.kafka, self.settings(**others))

    def settled(self, database: Engine, records: int) -> Callable[[], bool]:
        """Return whether the positions in the database add up to the number of records."""
        return lambda: sum(Store(database).positions(self.name).values()) >= records


@contextmanager
def migrated_database(server_url: str) -> Iterator[Engine]:
    """Make a database with the tables of the store; no connection to the server is kept, it may be restarted."""
    name = f"test_{uuid4().hex}"
    server = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with server.connect() as connection:
        connection.execute(text(f"create database {name}"))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    engine = open_database(url)
    yield engine
    engine.dispose()
    with server.connect() as connection:
        connection.execute(text(f"drop database {name} with (force)"))


@contextmanager
def running(*sinks: Sink) -> Iterator[None]:
    """Run sinks in threads, and stop them at the end; what one raises is raised here."""
    problems: list[BaseException] = []

    def run(sink: Sink) -> None:
        try:
            sink.run()
        except BaseException as problem:
            problems.append(problem)
            raise

    threads = [threading.Thread(target=run, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for sink in sinks:
            sink.stop()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert not problems, problems
