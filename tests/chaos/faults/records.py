"""Faults of what is published: bytes that are no job, schemas from the future, too much of it, the same again."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from schemas.canonical import fingerprint
from schemas.codec import Codec
from streams.codecs import codecs
from streams.delivery import envelope
from streams.errors import InvalidJob
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD
from streams.producer import Message, Producer
from streams.queues import CRITICAL, REPORTS, WEBHOOKS, Queue, queues_of
from tests.chaos.collect import executions
from tests.chaos.faults import Figures, fault
from tests.chaos.handlers import Apart, Deed, Quick, Threaded, Urgent
from tests.chaos.history import Published
from tests.chaos.publishing import end_of
from tests.chaos.scene import Scene

FOREIGN = "org-foreign"
WAITING = "jobs.retry.1s"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A record as somebody else's producer writes it, and the job that it holds."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    job: dict[str, Any]

    @property
    def published(self) -> Published:
        job = self.job
        end = end_of(Quick.model_validate(job["payload"]))
        return Published(job["jobId"], job["organizationId"], job["idempotencyKey"], time.time(), end)


class Foreigners:
    """Producers that know the wire format and not this project's client."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._codecs = codecs(scene.settings)
        self._count = 0

    def codec(self, queue: Queue) -> Codec:
        return self._codecs[queue.name]

    def record(
        self,
        kind: type[Deed],
        *,
        codec: Codec | None = None,
        stated: dict[str, Any] | None = None,
        **deed: Any,
    ) -> Foreign:
        """Return a record with a new job of a kind; `stated` overrides what it says of itself."""
        self._count += 1
        handler = HANDLERS[TYPE_OF_PAYLOAD[kind]]
        payload = kind(**{"password": self._scene.canary, "number": self._count, **deed})
        now = datetime.now(UTC)
        job = {
            "jobId": f"foreign-{self._count}",
            "jobType": handler.job_type,
            "organizationId": FOREIGN,
            "createdAt": now,
            "priority": 5,
            "idempotencyKey": f"foreign-key-{self._count}",
            "orderingKey": None,
            "maxAttempts": None,
            "payload": payload.model_dump(by_alias=True),
            **(stated or {}),
        }
        value = (codec or self.codec(handler.queue)).encode(job)
        headers = envelope(job["jobId"], handler.job_type, job["organizationId"], handler.queue, now)
        return Foreign(handler.queue.topic, job["organizationId"].encode(), value, headers, job)

    def write(self, records: list[Foreign]) -> None:
        """Write records and wait until the broker has them."""
        producer = Producer(self._scene.settings.kafka)
        messages = [Message(one.topic, one.key, one.value, list(one.headers.items())) for one in records]
        sending = producer.start(messages)
        assert producer.close(timedelta(seconds=30)) == 0
        assert not sending.errors, sending.errors[0]


def _runs(scene: Scene) -> Counter[str]:
    return Counter(run.job_id for run in executions(scene.effects / "ledger"))


# -- bytes that are no job -------------------------------------------------------------------------------

_ODD = """
import asyncio, sys
from aiokafka import AIOKafkaProducer

class Odd(str):
    def encode(self, *_):
        return bytes([255, 254])

async def main():
    async with AIOKafkaProducer(bootstrap_servers=sys.argv[1]) as producer:
        for value in sys.argv[3:]:
            await producer.send_and_wait(sys.argv[2], value.encode(), headers=[(Odd("odd"), b"data")])

asyncio.run(main())
"""


def _poisons(foreign: Foreigners, kind: type[Deed], chance: random.Random) -> Iterator[Foreign]:
    """Yield one record of each way to be no job; all their keys or values differ."""

    def good(**stated: Any) -> Foreign:
        return foreign.record(kind, stated=stated)

    def value_of(change: str) -> Foreign:
        record = good()
        value = record.value or b""
        changed = {
            "random": b"\x7f" + chance.randbytes(chance.randrange(1, 3_000)),
            "random body": value[:10] + chance.randbytes(chance.randrange(1, 300)),
            "truncated": value[: chance.randrange(1, len(value))],
            "longer": value + b"\0",
            "empty": b"",
            "none": None,
        }
        return replace(record, value=changed[change], key=chance.randbytes(8))

    for change in ("random", "random body", "truncated", "longer", "empty", "none"):
        yield value_of(change)
    yield replace(good(), key=None)
    yield replace(good(), key=b"org-somebody-else")
    for name, value in {
        "ce_id": b"poison-other",
        "organization-id": b"org-somebody-else",
        "ce_type": b"no.such.type",
        "attempt": b"many",
        "snoozes": b"-1",
        "not-before": b"\xff\xfe",
        "replay-id": b"zzzz",
        "filling": b"x" * 9_000,
    }.items():
        record = good()
        yield replace(record, headers=record.headers | {name: value})
    yield good(priority=99)
    yield good(maxAttempts=0)
    yield good(organizationId="../../etc")
    yield good(idempotencyKey="k" * 300)


@fault("poison-bytes", seconds=45, ci=True)
def poison_bytes(scene: Scene, seed: random.Random) -> Figures:
    """Records that are no jobs, in every way, among good ones: each a dead letter, bytes and key as they were."""
    figures = Figures()
    foreign = Foreigners(scene)
    scene.publishing.steadily(60)
    members = scene.workers(2)
    pids = [member.pid for member in members]
    scene.wait_for_ends(100)
    poisons: list[Foreign] = []
    for kind in (Quick, Urgent, Threaded, Apart) * 2:
        poisons += _poisons(foreign, kind, seed)
        bare = foreign.record(kind)
        poisons.append(replace(bare, headers={}))
        # By way of a retry topic: what names its queue is sent on to be judged there.
        poisons += [replace(one, topic=WAITING) for one in _poisons(foreign, kind, seed)]
    seed.shuffle(poisons)
    for start in range(0, len(poisons), 40):
        foreign.write(poisons[start : start + 40])
        scene.play(0.3)
    odd = {queue.topic: [f"odd {queue.name} {n}" for n in range(3)] for queue in queues_of("primary")}
    for topic, values in odd.items():
        _write_odd(scene, topic, values)
    wanted = {(one.key, one.value) for one in poisons}
    wanted |= {(None, value.encode()) for values in odd.values() for value in values}
    assert len(wanted) == len(poisons) + 3 * len(odd), "two of the poisons are the same"
    scene.heal()
    letters = _await_letters(scene, wanted)
    twice = sum(count > 1 for count in letters.values())
    figures.check(
        "dead letters", letters.keys() == wanted, f"{len(letters)} of {len(wanted)}", "a letter is missing"
    )
    figures.check("one letter each", twice == 0, f"{twice} twice")
    scene.play(3)
    scene.drain(30)
    same = [member.alive and member.pid == pid for member, pid in zip(members, pids, strict=True)]
    figures.check("workers live", all(same), pids, "a worker ended")
    return figures


def _write_odd(scene: Scene, topic: str, values: list[str]) -> None:
    """Write records with a header whose name is no UTF-8, which only the pure Python of aiokafka can."""
    subprocess.run(
        [sys.executable, "-c", _ODD, scene.settings.kafka_bootstrap_servers, topic, *values],
        env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}, check=True, timeout=30,
    )  # fmt: skip


def _await_letters(
    scene: Scene, wanted: set[tuple[bytes | None, bytes | None]]
) -> Counter[tuple[bytes | None, bytes | None]]:
    """Return how many dead letters have the key and value of each of some records, once each has one."""
    deadline = time.monotonic() + 30
    while True:
        letters = Counter(
            (letter.key, letter.value)
            for queue in queues_of("primary")
            for letter in scene.pipeline.records(queue.dead_letter_topic)
        )
        found = Counter({one: count for one, count in letters.items() if one in wanted})
        if found.keys() == wanted or time.monotonic() > deadline:
            return found


# -- a schema from the future ----------------------------------------------------------------------------


@fault("unknown-schema", seconds=50)
def unknown_schema(scene: Scene, seed: random.Random) -> Figures:
    """Jobs written with a schema that no worker has: they wait, past a kill -9 too, and run once it arrives."""
    figures = Figures()
    folder = scene.pipeline.folder / "schemas"
    scene.publishing.steadily(60)
    members = scene.workers(2, SCHEMA_HISTORY=str(folder), UNKNOWN_SCHEMA_DELAY="1s")
    scene.wait_for_ends(100)
    foreign = Foreigners(scene)
    newer = {queue: _newer(foreign.codec(queue)) for queue in (WEBHOOKS, CRITICAL, REPORTS)}
    records = [
        foreign.record(kind, codec=Codec(newer[queue]), work_ms=5, stated={"later": 7})
        for kind, queue in ((Quick, WEBHOOKS), (Urgent, CRITICAL), (Apart, REPORTS))
        for _ in range(30)
    ]
    foreign.write(records)
    waiting = {one.job["jobId"] for one in records}
    scene.play(4)
    victim = seed.choice(members)
    victim.kill()
    victim.start()
    ended = len(scene.listener.ended)
    scene.play(12)  # as long as a busy machine takes to notice the kill and to share out the partitions
    figures.check("others go on", len(scene.listener.ended) - ended > 100, len(scene.listener.ended) - ended)
    early = waiting & set(_runs(scene))
    figures.check("none ran unread", not early, len(early))
    for queue, schema in newer.items():
        history = folder / "history" / queue.name
        history.mkdir(parents=True)
        (history / f"{fingerprint(schema).hex()}.avsc").write_text(json.dumps(schema))
    scene.publishing.published += [one.published for one in records]
    scene.heal()
    began = time.monotonic()
    scene.wait_for_end_of(sorted(waiting), 30)
    figures.note("ran after", f"{time.monotonic() - began:.1f} s")
    scene.play(3)
    scene.drain(30)
    return figures


def _newer(codec: Codec) -> dict[str, Any]:
    """Return a schema as a later version might have it: with one more field."""
    later = {"name": "later", "type": "int", "default": 0}
    return {**codec.schema, "fields": [*codec.schema["fields"], later]}


# -- too much of it --------------------------------------------------------------------------------------


@fault("oversize", seconds=20)
def oversize(scene: Scene, seed: random.Random) -> Figures:
    """Jobs too large to publish are refused; those of others up to the broker's limit run, retry and die."""
    figures = Figures()
    # The windows of two queues may be full of them.
    scene.limits.peak_mib += 2 * scene.settings.window_bytes / 2**20
    scene.publishing.steadily(40)
    (member,) = scene.workers(1)
    pid = member.pid
    scene.wait_for_ends(60)
    refused = 0
    for size in (930_000, 1_100_000, 5_000_000):
        try:
            scene.publishing.publish([Quick(password=_filling(scene, size))])
        except InvalidJob:
            refused += 1
    figures.check("publish refused", refused == 3, f"{refused} of 3", "a job that is too large was published")
    foreign = Foreigners(scene)
    records = [
        foreign.record(kind, how=how, fail_attempts=times, work_ms=20, password=_filling(scene, size))
        for size in (900_000, 1_000_000, 1_048_000)
        for kind in (Quick, Urgent)
        for how, times in (("succeed", 0), ("transient", 1), ("poison", 1_000))
    ]
    seed.shuffle(records)
    foreign.write(records)
    scene.publishing.published += [one.published for one in records]
    scene.heal()
    scene.wait_for_end_of([one.job["jobId"] for one in records])
    scene.play(3)
    scene.drain(30)
    figures.note("largest", max(len(one.value or b"") for one in records))
    figures.check("worker lives", member.alive and member.pid == pid, pid)
    return figures


def _filling(scene: Scene, size: int) -> str:
    return scene.canary + "x" * size


# -- the same again --------------------------------------------------------------------------------------

KEYS, PARALLEL = 12, 100


@fault("published-100-times", seconds=30, ci=True)
def published_100_times(scene: Scene, seed: random.Random) -> Figures:
    """Each of 12 keys is published 100 times in parallel, with a kill -9 among them: each has one effect."""
    figures = Figures()
    members = scene.under_load(40, ends=60)
    jobs: list[Published] = []
    for number in range(KEYS):
        payload = scene.publishing.payload(
            seed.choice([Quick, Urgent, Threaded]), work_ms=seed.randrange(200)
        )
        key = f"same-{number}"
        publish = partial(
            scene.publishing.jobs.publish, payload, organization_id=FOREIGN, idempotency_key=key
        )
        (job_id,) = set(_at_once(publish))
        jobs.append(Published(job_id, FOREIGN, key, time.time()))
        if number == KEYS // 2:
            victim = seed.choice(members)
            victim.kill()
            victim.start()
    scene.publishing.published += jobs
    scene.recover(3, 30)
    runs = _runs(scene)
    ran = [runs[one.job_id] for one in jobs]
    figures.check(
        "runs of each", max(ran) <= 2, f"{sum(ran)} of {len(jobs)} jobs", "a job ran again and again"
    )
    return figures


def _at_once(publish: Callable[[], str]) -> list[str]:
    barrier = threading.Barrier(PARALLEL)

    def wait_and_publish(_: int) -> str:
        barrier.wait(30)
        return publish()

    with ThreadPoolExecutor(PARALLEL) as threads:
        return list(threads.map(wait_and_publish, range(PARALLEL)))
