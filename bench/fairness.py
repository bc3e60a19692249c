"""Let one organization flood a queue on which twenty others publish: `python -m bench.fairness --json`.

Five runs, each with a stack and a worker of its own. Quiet organizations alone, one job a second each; the same while
another one publishes its flood, to the same topic and for some of them to the same partition, and until the worker is
through with it; the same while that flood goes to a queue of another worker; the same with the lanes turned off, first
come, first served; and three floods with the weights 1, 2 and 4, once these are published. A wait is the time from
publishing to the start of the handler, by the lifecycle events.

`p99_ratio` compares the quiet ones beside the flood with those alone, on a machine that has nothing else to do, and
`p99_ratio_elsewhere` with those alone on their worker while the same flood is published, for as long.

The worker has a CPU of its own, as it has on a machine of its own: what is measured is what the lanes make of a flood,
not who gets the CPU when a flood is published where it is worked off. `--together` measures that as well. But two CPUs
may be halves of one core: then each is slower while the other is busy.
"""

import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import psutil
from confluent_kafka import Consumer, TopicPartition

import devstack
from bench.drain import cpu_seconds, worker_process
from bench.handlers import Elsewhere, Pause
from schemas import files
from schemas.codec import Codec
from streams import topics
from streams.client import SyncJobs
from streams.consuming import Consumed, consumed
from streams.publication import Publication
from streams.queues import CRITICAL, LIFECYCLE_TOPIC, RETRY_DELAYS
from streams.settings import Settings, load_settings

QUIET = 20
BATCH = 1_000
WEIGHTS = {"one": 1, "two": 2, "four": 4}
WARM_UP_SECONDS = 10.0
"""A broker that was just started takes its time for what it does for the first time."""
SHARED_SECONDS = 30.0
"""How long the shares are measured; the first flood of three would be worked off in a minute."""
SETTLING_SECONDS = 3.0
"""What is left out of the shares once all floods are published: until each has filled its lane."""


@dataclass(frozen=True)
class Run:
    """One completed job, by its event; instants are in seconds since the epoch."""

    organization: str
    partition: str
    published: float
    started: float
    ended: float

    @property
    def wait(self) -> float:
        return self.started - self.published


@dataclass(frozen=True)
class Seen:
    """What was seen while quiet organizations published."""

    runs: list[Run]
    began: float
    flooded: float
    """Until when the flood was published, in seconds since the epoch as all instants."""
    worked_off: float
    """When the last job of the flood ended that was seen to."""
    cpu_seconds: float
    """Of the worker."""
    records: int
    """Written to the queue and to retry topics, by publishers, the worker and its forwarder."""

    @property
    def seconds(self) -> float:
        """Return how long the flood lasted, until all of it had been worked off."""
        return self.worked_off - self.began

    def first(self, seconds: float) -> list[Run]:
        """Return what was published in the first so many seconds."""
        return [one for one in self.runs if one.published < self.began + seconds]

    @property
    def beside(self) -> list[Run]:
        """Return what was published beside the flood."""
        return self.first(self.seconds)

    def part(self, *, published: bool) -> list[Run]:
        """Return what of that was published while the flood was, or afterwards."""
        return [one for one in self.beside if (one.published < self.flooded) is published]

    @property
    def per_second(self) -> float:
        """Return how many jobs ended per second until the flood was worked off."""
        return sum(one.ended <= self.worked_off for one in self.runs) / self.seconds


@click.command()
@click.option("--jobs", default=100_000, help="Size of the flood.")
@click.option("--seconds", default=120.0, help="How long the quiet ones publish.")
@click.option("--work-ms", default=10, help="How long a job takes.")
@click.option("--only", type=click.Choice(["quiet", "weights"]), help="Run only a part.")
@click.option(
    "--together", is_flag=True, help="Let the worker share its CPU with the stack and the publishers."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line.")
def main(jobs: int, seconds: float, work_ms: int, only: str | None, together: bool, as_json: bool) -> None:
    """Run all and print what was seen."""
    figures: dict[str, Any] = {"bench": "fairness", "jobs": jobs, "seconds": seconds, "work_ms": work_ms}
    apart = not together and len(os.sched_getaffinity(0)) > 1
    figures["worker_cpu"] = "own" if apart else "shared"
    if only != "weights":
        alone = quiet_run(0, seconds, work_ms, apart=apart)
        elsewhere = quiet_run(jobs, seconds, work_ms, Elsewhere, apart=apart)
        fair = quiet_run(jobs, seconds, work_ms, apart=apart)
        fifo = quiet_run(jobs, seconds, work_ms, apart=apart, FAIR_LANES="false")
        same = {one.partition for one in fair.runs if one.organization == "flood"}
        figures |= {
            "alone": waits(alone.runs),
            "flood_elsewhere": waits(elsewhere.first(fair.seconds)),
            "flood_elsewhere_while_it_is_published": waits(elsewhere.beside),
            "beside_the_flood": waits(fair.beside),
            "while_it_is_published": waits(fair.part(published=True)),
            "while_it_waits": waits(fair.part(published=False)),
            "on_its_partition": waits([one for one in fair.beside if one.partition in same]),
            "first_come_first_served": waits(fifo.beside),
            "per_second": round(fair.per_second),
            "per_second_fifo": round(fifo.per_second),
            "worker_cpus": round(fair.cpu_seconds / seconds, 2),
            "worker_cpus_fifo": round(fifo.cpu_seconds / seconds, 2),
            "records_per_job": round(fair.records / jobs, 2),
        }
        figures |= {
            "p99_ratio": ratio(figures, "beside_the_flood", "alone"),
            "p99_ratio_elsewhere": ratio(figures, "beside_the_flood", "flood_elsewhere"),
            "p99_ratio_published": ratio(
                figures, "while_it_is_published", "flood_elsewhere_while_it_is_published"
            ),
            "p99_ratio_waiting": ratio(figures, "while_it_waits", "alone"),
        }
        figures["throughput_ratio"] = round(fair.per_second / fifo.per_second, 3)
    if only != "quiet":
        figures["shares"] = shares(jobs, SHARED_SECONDS, work_ms)
    click.echo(json.dumps(figures) if as_json else "\n".join(f"{k}={v}" for k, v in figures.items()))


def ratio(figures: dict[str, Any], one: str, other: str) -> float | None:
    """Return the ratio of two p99 waits; None when nothing was seen of one of them."""
    if "p99_ms" not in figures[one] or "p99_ms" not in figures[other]:
        return None
    return round(float(figures[one]["p99_ms"] / figures[other]["p99_ms"]), 2)


def quiet_run(
    flood: int,
    seconds: float,
    work_ms: int,
    kind: type[Pause | Elsewhere] = Pause,
    *,
    apart: bool = False,
    **environment: str,
) -> Seen:
    """Return what ended while the quiet ones published, with a flood of a kind that starts as they are measured."""
    with worker_on_a_stack(environment, apart=apart) as (settings, worker):
        publishing = None
        with SyncJobs(settings) as jobs:
            _publish_quietly(jobs, WARM_UP_SECONDS, work_ms)
            began, cpu_before = time.time(), cpu_seconds(worker)
            if flood:
                publishing = Flood("flood", flood, kind(work_ms=work_ms))
            _publish_quietly(jobs, seconds, work_ms)
        ended, cpu = time.time(), cpu_seconds(worker) - cpu_before
        time.sleep(0.5)
        runs = completed(settings)
        hops = records_written(settings)
        flooded = publishing.end() if publishing is not None else began
    runs = [one for one in runs if one.published >= began and one.ended <= ended]
    worked_off = max((one.ended for one in runs if one.organization == "flood"), default=flooded)
    return Seen(runs, began, flooded, worked_off, cpu, hops)


def shares(flood: int, seconds: float, work_ms: int) -> dict[str, float]:
    """Return by how much the shares of three floods differ from their weights."""
    weights = ",".join(f"{name}={weight}" for name, weight in WEIGHTS.items())
    with worker_on_a_stack({"ORGANIZATION_WEIGHTS": weights}) as (settings, _):
        for one in [Flood(name, flood // 3, Pause(work_ms=work_ms)) for name in WEIGHTS]:
            one.wait()
        time.sleep(SETTLING_SECONDS + seconds)
        until = time.time()
        runs = completed(settings)
    counted = Counter(one.organization for one in runs if until - seconds <= one.ended <= until)
    total, whole = sum(counted.values()), sum(WEIGHTS.values())
    return {name: round(counted[name] / total / (weight / whole), 3) for name, weight in WEIGHTS.items()}


def waits(runs: Sequence[Run]) -> dict[str, float]:
    """Return the quantiles of what quiet organizations waited."""
    seen = sorted(one.wait for one in runs if one.organization.startswith("quiet"))
    if not seen:
        return {"jobs": 0}
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {"jobs": len(seen)} | {
        name: round(seen[min(int(len(seen) * share), len(seen) - 1)] * 1000, 1) for name, share in at.items()
    }


@contextmanager
def worker_on_a_stack(
    environment: dict[str, str], *, apart: bool = False
) -> Iterator[tuple[Settings, psutil.Process]]:
    """Start a stack and a worker on it, the worker on a CPU `apart` from all else, and end both."""
    cpus = os.sched_getaffinity(0)
    own = {min(cpus)} if apart else cpus
    with on(cpus - own or cpus), tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o711)
        stack = devstack.start(Path(folder) / "stack")
        before = dict(os.environ)
        try:
            os.environ.update(
                stack.environment(), HANDLER_MODULES="bench.handlers", HEALTH_PORT="0",
                PUBLISH_TIMEOUT="60s", **environment,
            )  # fmt: skip
            settings = load_settings()
            topics.ensure(settings)
            with ExitStack() as running:
                with on(own):
                    worker = running.enter_context(worker_process(Path(folder) / "worker.log"))
                yield settings, psutil.Process(worker.pid)
        finally:
            os.environ.clear()
            os.environ.update(before)
            stack.stop(clean=True)


@contextmanager
def on(cpus: set[int]) -> Iterator[None]:
    """Let what is started in the block run on these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _publish_quietly(jobs: SyncJobs, seconds: float, work_ms: int) -> None:
    """Publish one job a second for each quiet organization, evenly spread."""
    began = time.monotonic()
    for number in range(int(seconds * QUIET)):
        time.sleep(max(0.0, began + number / QUIET - time.monotonic()))
        jobs.publish(Pause(work_ms=work_ms), organization_id=f"quiet-{number % QUIET}")


class Flood:
    """Publishes many jobs of one organization, in a process of its own."""

    def __init__(self, organization: str, count: int, payload: Pause | Elsewhere) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ended = spawn.Value("d", 0.0)
        self._process = spawn.Process(target=_flood, args=(self._ended, organization, count, payload))
        self._process.start()

    def wait(self) -> None:
        """Wait until all is published."""
        self._process.join()

    def end(self) -> float:
        """End it, and return when all was published, or else now; in seconds since the epoch."""
        self._process.kill()
        self._process.join()
        return float(self._ended.value) or time.time()


def _flood(ended: Any, organization: str, count: int, payload: Pause | Elsewhere) -> None:
    os.nice(10)  # publishing a flood takes seconds of CPU, which elsewhere are those of another machine
    with SyncJobs(load_settings()) as jobs:
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            jobs.publish_many([Publication(payload, organization) for _ in range(size)])
    ended.value = time.time()


def completed(settings: Settings) -> list[Run]:
    """Return all jobs that have completed so far."""
    codec = Codec(files.current(files.LIFECYCLE))
    consumer = Consumer({**settings.kafka, "group.id": "bench-fairness", "enable.auto.commit": False})
    runs: list[Run] = []
    try:
        left = {
            number: consumer.get_watermark_offsets(TopicPartition(LIFECYCLE_TOPIC, number), timeout=10)[1]
            for number in range(settings.kafka_partitions)
        }
        left = {number: end for number, end in left.items() if end}
        consumer.assign([TopicPartition(LIFECYCLE_TOPIC, number, 0) for number in left])
        while left:
            for record in consumed(consumer.consume(5000, 1.0)):
                assert isinstance(record, Consumed)
                if record.offset >= left.get(record.partition, 0) - 1:
                    left.pop(record.partition, None)
                event = codec.decode(record.value or b"")
                if event["kind"] == "completed":
                    runs.append(_run(event))
    finally:
        consumer.close()
    return runs


def records_written(settings: Settings) -> int:
    """Return how many records were written to the queue and to the retry topics."""
    consumer = Consumer({**settings.kafka, "group.id": "bench-fairness"})
    try:
        return sum(
            consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
            for topic in (CRITICAL.topic, *RETRY_DELAYS)
            for number in range(settings.kafka_partitions)
        )
    finally:
        consumer.close()


def _run(event: dict[str, Any]) -> Run:
    queued: datetime = event["queuedAt"]
    started: datetime = event["startedAt"]
    return Run(
        event["organizationId"],
        event["origin"].split("/")[1],
        queued.timestamp(),
        started.timestamp(),
        event["at"].timestamp(),
    )


if __name__ == "__main__":
    main()
