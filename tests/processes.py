"""Real workers for tests: the processes, what they did, and what they said of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription

import devstack
from schemas import files
from schemas.codec import Codec
from streams import topics
from streams.agents import load
from streams.codecs import codecs
from streams.consuming import Consumed, consumed
from streams.queues import LIFECYCLE_TOPIC, WORKER_TYPES, Queue
from streams.retry import GROUP as FORWARDER
from streams.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent


class Execution(NamedTuple):
    """One line of the trace: what is start, end or failed; `at` is in seconds since the epoch."""

    what: str
    job_id: str
    attempt: int
    pid: int
    at: float


def wait_until(true: Callable[[], bool], within_seconds: float, what: str | Callable[[], str]) -> None:
    """Return as soon as something is true; AssertionError with `what` when it does not become so in time."""
    deadline = time.monotonic() + within_seconds
    while not true():
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {within_seconds:g} s: {said}")
        time.sleep(0.02)


class Worker:
    """A worker process, started as an operator would."""

    def __init__(self, worker_type: str, environment: Mapping[str, str], log: Path) -> None:
        self._type = worker_type
        self._environment = dict(environment)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Worker":
        """Start it; it is ready when it runs jobs."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "faust"), "-A", f"streams.{self._type}", "worker"],
                env={**os.environ, **self._environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """Kill it with SIGKILL, and its children with it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(children, timeout=5)

    def terminate(self, within_seconds: float = 40) -> int:
        """Send SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_seconds)

    def wait(self, within_seconds: float) -> int:
        """Wait for it to end by itself and return its exit code."""
        return self.process.wait(within_seconds)

    def stop(self) -> None:
        """End it, however it is."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            try:
                # One that leaves its groups spares the next test waiting for its sessions to run out.
                self.terminate(8)
            except subprocess.TimeoutExpired:
                self.kill()

    def said(self) -> str:
        """Return what it wrote to its log."""
        return self.log.read_text(errors="replace")


@dataclass
class Pipeline:
    """A pipeline on the test run's stack with topics, keys and traces of its own."""

    settings: Settings
    environment: dict[str, str]
    folder: Path
    _workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._admin = AdminClient({**self.settings.kafka, "log_level": 2})

    def worker(self, worker_type: str = "primary", **environment: str) -> Worker:
        """Return a worker that is stopped when the test ends."""
        log = self.folder / f"{worker_type}-{len(self._workers)}.log"
        worker = Worker(worker_type, {**self.environment, **environment}, log)
        self._workers.append(worker)
        return worker

    def command(self, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a `streams` command."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "streams"), *arguments],
            env={**os.environ, **self.environment},
            cwd=ROOT, input=given, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Mapping[str, bytes]) -> None:
        """Write a record as any client might."""
        producer = Producer({**self.settings.kafka, "partitioner": "murmur2_random", "acks": "all"})
        producer.produce(topic, value, key, headers=list(headers.items()))
        assert producer.flush(10) == 0

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    # -- what happened --------------------------------------------------------------------------------

    def executions(self) -> list[Execution]:
        """Return the trace of all executions so far."""
        path = self.folder / "effects" / "executions"
        if not path.exists():
            return []
        return [Execution(*json.loads(line)) for line in path.read_text().splitlines()]

    def effects(self) -> set[str]:
        """Return the names of the effects: organization-key."""
        return {path.name for path in (self.folder / "effects").iterdir() if path.name != "executions"}

    def records(self, topic: str) -> list[Consumed]:
        """Return everything a topic holds now."""
        return list(read_all(self.settings, topic))

    def codec(self, queue: Queue) -> Codec:
        """Return the codec of a queue, with the job types of the tests."""
        load(self.settings.handler_modules)
        return codecs(self.settings)[queue.name]

    def wait_for_record(
        self, topic: str, meant: Callable[[Consumed], bool], within_seconds: float = 30
    ) -> None:
        """Wait until a topic holds a record that is meant."""
        wait_until(lambda: any(map(meant, self.records(topic))), within_seconds, f"the record is in {topic}")

    def events(self) -> list[dict[str, Any]]:
        """Return all lifecycle events so far."""
        codec = Codec(files.current(files.LIFECYCLE))
        return [codec.decode(record.value or b"") for record in self.records(LIFECYCLE_TOPIC)]

    def kinds(self) -> Counter[str]:
        """Return how many events there are of each kind."""
        return Counter(str(event["kind"]) for event in self.events())

    def wait_for(self, kind: str, count: int, within_seconds: float = 60) -> None:
        """Wait until at least so many jobs have an event of a kind."""

        def enough() -> bool:
            return len({event["jobId"] for event in self.events() if event["kind"] == kind}) >= count

        wait_until(enough, within_seconds, lambda: f"{count} jobs {kind}; there are {self.kinds()}")

    def wait_for_count(self, kind: str, count: int, within_seconds: float = 60) -> None:
        """Wait until there are at least so many events of a kind, of whatever jobs."""
        wait_until(lambda: self.kinds()[kind] >= count, within_seconds, f"{count} times {kind}")

    def shares(self, group: str = "streams-primary") -> dict[str, set[tuple[str, int]]]:
        """Return which partitions each member of a group has; nothing in a rebalance, or while no broker can tell."""
        try:
            found = self._described(group)
        except KafkaException:  # a coordinator may answer only once all have joined
            return {}
        if found.state is not ConsumerGroupState.STABLE:
            return {}
        return {
            one.member_id: {(at.topic, at.partition) for at in one.assignment.topic_partitions}
            for one in found.members
        }

    def members(self, group: str = "streams-primary") -> int:
        """Return how many members of a group have partitions."""
        return sum(map(bool, self.shares(group).values()))

    def rebalances(self, group: str = "streams-primary") -> bool:
        """Return whether a group is in a rebalance; raises KafkaException when no broker can tell."""
        return self._described(group).state is not ConsumerGroupState.STABLE

    def listed(self, group: str = "streams-primary") -> int:
        """Return how many members a group has, with partitions or without."""
        return len(self._described(group).members)

    def _described(self, group: str) -> ConsumerGroupDescription:
        (future,) = self._admin.describe_consumer_groups([group], request_timeout=5).values()
        described: ConsumerGroupDescription = future.result()
        return described

    def committed(self, group: str = "streams-primary") -> dict[tuple[str, int], int]:
        """Return the committed positions of a group; raises KafkaException when the broker cannot tell yet."""
        wanted = [ConsumerGroupTopicPartitions(group)]
        (future,) = self._admin.list_consumer_group_offsets(wanted, request_timeout=2).values()
        return {(one.topic, one.partition): one.offset for one in future.result().topic_partitions or []}


def read_all(settings: Settings, topic: str) -> Iterator[Consumed]:
    """Yield what a topic holds now."""
    consumer = Consumer({**settings.kafka, "group.id": "test-reader", "enable.auto.commit": False})
    try:
        left: dict[int, int] = {}
        wait_until(lambda: _ends(consumer, topic, left), 10, f"{topic} has leaders")
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        while left:
            for record in consumed(consumer.consume(1000, 1.0)):
                assert isinstance(record, Consumed)
                high = left.get(record.partition, 0)
                if record.offset < high:
                    yield record
                if record.offset >= high - 1:
                    left.pop(record.partition, None)
    finally:
        consumer.close()


def _ends(consumer: Consumer, topic: str, left: dict[int, int]) -> bool:
    """Note where the partitions that hold records end; False while a new topic's leader is not known yet."""
    try:
        for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)
            if high > low:
                left[number] = high
    except KafkaException:
        return False
    return True


@contextmanager
def pipeline(stack: devstack.Stack, redis_url: str, folder: Path) -> Iterator[Pipeline]:
    """Give a test new topics, an empty Redis database and a folder for traces."""
    (folder / "effects").mkdir()
    environment = {
        **stack.environment(),
        "REDIS_URL": redis_url,
        "HANDLER_MODULES": "tests.handlers",
        "EFFECTS_FOLDER": str(folder / "effects"),
        "ARTIFACT_DIR": str(folder / "artifacts"),
        "LEASE": "3s",
        "SHUTDOWN_GRACE": "5s",
        "KAFKA_SESSION_TIMEOUT": "6s",
        "KAFKA_PARTITIONS": "4",
        "HEALTH_PORT": "0",
    }
    settings = load_settings(
        kafka_bootstrap_servers=stack.kafka,
        redis_url=redis_url,
        handler_modules=("tests.handlers",),
        kafka_partitions=4,
    )
    _remove(settings)
    topics.ensure(settings)
    running = Pipeline(settings, environment, folder)
    try:
        yield running
    finally:
        running.close()


def _remove(settings: Settings) -> None:
    """Delete the topics and the groups that an earlier test left."""
    admin = AdminClient({**settings.kafka, "log_level": 2})
    names = [topic.name for topic in topics.expected(settings)]
    present = [name for name in names if name in admin.list_topics(timeout=10).topics]
    for future in admin.delete_topics(present).values() if present else []:
        future.result()
    wait_until(
        lambda: not set(names) & set(admin.list_topics(timeout=10).topics),
        20,
        "the topics of an earlier test are gone",
    )
    ours = {FORWARDER, *(f"streams-{worker_type}" for worker_type in WORKER_TYPES)}

    def gone() -> bool:
        listed = admin.list_consumer_groups(request_timeout=5).result().valid or []
        left = sorted(ours & {group.group_id for group in listed})
        # A group whose members were killed can be deleted once their sessions have run out.
        for future in admin.delete_consumer_groups(left, request_timeout=5).values() if left else []:
            future.exception()
        return not left

    wait_until(gone, 20, "the groups of an earlier test are gone")
