"""Kill a worker among quick and slow jobs and count what comes again: `python -m bench.crash --json`.

Of 6,000 jobs 0.5 % take 4 s and the others 25 ms. One `kill -9` in the middle; another worker finishes. Counted are the
handlers that ran twice, and the records of finished jobs above the committed position, which are read again: those
that the commit says are settled are dropped unasked, the others by the ledger.
"""

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

import click
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Consumer, TopicPartition

import devstack
from bench.drain import worker_process
from bench.handlers import Nap
from schemas import files
from schemas.codec import Codec
from streams import topics
from streams.client import SyncJobs
from streams.consuming import Consumed, consumed
from streams.offset_map import settled_beyond
from streams.publication import Publication
from streams.queues import CRITICAL, LIFECYCLE_TOPIC
from streams.settings import Settings, load_settings

JOBS = 6_000
SLOW_EVERY = 200
QUICK_MS, SLOW_MS = 25, 4_000
PATIENCE_SECONDS = 180.0

Place = tuple[int, int]
"""Partition and offset."""


class Runs:
    """The lifecycle topic, read from its start and followed."""

    def __init__(self, settings: Settings) -> None:
        self._codec = Codec(files.current(files.LIFECYCLE))
        self._consumer = Consumer({**settings.kafka, "group.id": "bench-crash", "enable.auto.commit": False})
        self._consumer.assign(
            [TopicPartition(LIFECYCLE_TOPIC, number, 0) for number in range(settings.kafka_partitions)]
        )
        self.completed: dict[str, Place] = {}

    def await_completed(self, wanted: int) -> None:
        """Read until so many jobs have completed; raises ClickException when they do not in time."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(self.completed) < wanted:
            self.read()
            if time.monotonic() > deadline:
                raise click.ClickException(f"only {len(self.completed)} of {wanted} jobs completed in time")

    def read(self) -> int:
        """Read what is there, and return how many events that were."""
        records = [one for one in consumed(self._consumer.consume(1000, 0.1)) if isinstance(one, Consumed)]
        for record in records:
            event = self._codec.decode(record.value or b"")
            if event["kind"] == "completed":
                _, partition, offset = event["origin"].split("/")
                self.completed[event["jobId"]] = int(partition), int(offset)
        return len(records)

    def close(self) -> None:
        self._consumer.close()


@click.command()
@click.option("--concurrency", default=20, help="Slots of the worker.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line.")
def main(concurrency: int, as_json: bool) -> None:
    """Publish, kill in the middle, finish, and print what came again."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o711)
        stack = devstack.start(Path(folder) / "stack")
        try:
            os.environ.update(
                stack.environment(), HANDLER_MODULES="bench.handlers", HEALTH_PORT="0", LEASE="5s",
                KAFKA_SESSION_TIMEOUT="6s", WORKER_CONCURRENCY=str(concurrency), NAPS=str(Path(folder) / "naps"),
            )  # fmt: skip
            settings = load_settings()
            topics.ensure(settings)
            figures = crash(settings, Path(folder))
            click.echo(json.dumps(figures) if as_json else "  ".join(f"{k}={v}" for k, v in figures.items()))
        finally:
            stack.stop(clean=True)


def crash(settings: Settings, folder: Path) -> dict[str, object]:
    """Return the figures of one crash."""
    with SyncJobs(settings) as jobs:
        naps = [SLOW_MS if number % SLOW_EVERY == 0 else QUICK_MS for number in range(JOBS)]
        jobs.publish_many([Publication(Nap(work_ms=ms), f"org-{n % 7}") for n, ms in enumerate(naps)])
    runs = Runs(settings)
    with worker_process(folder / "first.log") as first:
        runs.await_completed(JOBS // 2)
        first.kill()
        first.wait()
    committed = {
        partition: (at, settled_beyond(at, said)) for partition, at, said in asyncio.run(_committed(settings))
    }
    while runs.read():
        pass
    above = [
        offset in beyond
        for partition, offset in runs.completed.values()
        for position, beyond in [committed.get(partition, (0, set()))]
        if offset >= position
    ]
    completed = len(runs.completed)
    with worker_process(folder / "second.log"):
        runs.await_completed(JOBS)
    runs.close()
    started = (folder / "naps").read_text().splitlines()
    return {
        "bench": "crash",
        "jobs": JOBS,
        "completed_at_the_kill": completed,
        "finished_above_the_position": len(above),
        "finished_and_read_again": above.count(False),
        "run_again": len(started) - len(set(started)),
    }


async def _committed(settings: Settings) -> list[tuple[int, int, str]]:
    """Return partitions with their positions and what was committed beside these."""
    # Not by confluent-kafka 2.16, which reads metadata beyond its end.
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        found = await admin.list_consumer_group_offsets("streams-primary")
    finally:
        await admin.close()
    return [(tp.partition, *committed) for tp, committed in found.items() if tp.topic == CRITICAL.topic]


if __name__ == "__main__":
    main()
