"""Put a history together from what the outside can see: topics, ledger file, store, logs."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from redis import Redis
from sqlalchemy import Engine, text

from schemas import files
from schemas.codec import Codec
from streams.codecs import lifecycle_codec
from streams.consuming import Consumed, End, consumed
from streams.queues import LIFECYCLE_TOPIC, QUEUES, RETRY_DELAYS, TRACKING_DEAD_LETTER_TOPIC
from streams.settings import Settings
from tests.chaos.history import Carried, Execution
from tests.integration.lifecycle import comparable, stored_rows
from tracking.events import event_of
from tracking.fold import Row, fold
from tracking.rebuild import rebuild
from tracking.sink import Sink, SinkSettings
from tracking.store import Store

TOPICS = (
    *(queue.topic for queue in QUEUES.values()),
    *RETRY_DELAYS,
    *(queue.dead_letter_topic for queue in QUEUES.values()),
)


def executions(ledger: Path) -> list[Execution]:
    """Return the calls of handlers that a ledger tells of."""
    found: dict[str, Execution] = {}
    for what, call, job_id, effect, attempt, pid, at in ledger_lines(ledger):
        if what == "start":
            found[call] = Execution(call, job_id, effect, attempt, pid, at)
        elif what != "effect":
            began = found[call]
            found[call] = Execution(call, job_id, effect, attempt, pid, began.started, at, what)
    return list(found.values())


def ledger_lines(ledger: Path) -> Iterator[list[Any]]:
    """Yield the lines of a ledger; one that is being written is not one yet."""
    if ledger.exists():
        whole, _, _ = ledger.read_text().rpartition("\n")
        yield from map(json.loads, whole.splitlines())


def carried(record: Consumed) -> Carried:
    """Return what matters of a record."""
    headers = record.headers
    return Carried(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        written=record.timestamp_ms / 1000,
        job_id=headers.get("ce_id", b"").decode("utf-8", "replace"),
        attempt=_number(headers.get("attempt", b"1")),
        snoozes=_number(headers.get("snoozes", b"0")),
        origin=headers.get("origin", b"").decode("utf-8", "replace"),
        value_hash=hashlib.sha256(record.value or b"").hexdigest()[:16],
        reason=headers.get("reason", b"").decode("utf-8", "replace")[:120],
    )


def _number(raw: bytes) -> int:
    return int(raw) if raw.isdigit() else 0


def folded_rows(raw: Iterable[bytes]) -> list[str]:
    """Return the rows that lifecycle events fold to."""
    codec = Codec(files.current(files.LIFECYCLE))
    return [_text(comparable(row)) for row in fold(event_of(codec.decode(value)) for value in raw)]


def rows(database: Engine) -> list[str]:
    """Return the rows of the store, to be compared with those."""
    return [_text(row) for row in stored_rows(database)]


def rebuilt_rows(database: Engine, settings: Settings) -> list[str]:
    """Return the rows of jobs of a store that was rebuilt from the topic."""
    store = Store(database)
    topics = SinkSettings(LIFECYCLE_TOPIC, TRACKING_DEAD_LETTER_TOPIC)
    sink = Sink(store, lifecycle_codec(settings), settings.kafka, topics)
    rebuild(store, sink, settings.kafka, LIFECYCLE_TOPIC)
    return rows(database)


def _text(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def leaks(canary: str, records: Iterable[Consumed], raw: Iterable[bytes], folder: Path) -> Iterator[str]:
    """Yield where the secret is seen that only the value of a job's own record may hold."""
    needle = canary.encode()
    for record in records:
        for name, value in record.headers.items():
            if needle in value:
                yield f"header {name} of {record.place}"
    for number, value in enumerate(raw):
        if needle in value:
            yield f"lifecycle event {number}"
    for log in sorted(folder.glob("*.log")):
        if needle in log.read_bytes():
            yield log.name


def leaks_in_store(canary: str, database: Engine) -> Iterator[str]:
    """Yield in which tables of the store the secret is."""
    with database.connect() as connection:
        for table in ("job_executions", "lifecycle_events"):
            seen = text(f"select count(*) from {table} t where t::text like :canary")
            if connection.execute(seen, {"canary": f"%{canary}%"}).scalar_one():
                yield f"table {table}"


def leaks_in_redis(canary: str, url: str) -> Iterator[str]:
    """Yield in which keys of Redis the secret is."""
    needle = canary.encode()
    with Redis.from_url(url) as client:
        keys: list[bytes] = list(client.scan_iter(count=1000))
        for start in range(0, len(keys), 1000):
            part = keys[start : start + 1000]
            values: Any = client.mget(part)
            for key, value in zip(part, values, strict=True):
                if needle in key or (value is not None and needle in value):
                    yield f"Redis key {key!r}"


def records(kafka: dict[str, Any], partitions: int, within_seconds: float = 60) -> list[Consumed]:
    """Return every record of every topic that carries jobs, and what tracking refused."""
    topics = (*TOPICS, TRACKING_DEAD_LETTER_TOPIC)
    consumer = Consumer(
        {
            **kafka,
            "group.id": "chaos-reader",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 2,
        }
    )
    left = {(topic, number) for topic in topics for number in range(partitions)}
    consumer.assign([TopicPartition(topic, number, 0) for topic, number in left])
    found: list[Consumed] = []
    deadline = time.monotonic() + within_seconds
    try:
        while left and time.monotonic() < deadline:
            for one in consumed(consumer.consume(5_000, 0.2)):
                if isinstance(one, End):
                    left.discard((one.topic, one.partition))
                else:
                    found.append(one)
    finally:
        consumer.close()
    assert not left, f"not read to their ends: {sorted(left)}"
    return found
