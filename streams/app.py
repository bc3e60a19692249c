"""The Faust app of a worker: what every one of the four is made of."""

import asyncio
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import faust
from faust.app.base import BootStrategy as FaustBootStrategy
from faust.types import StreamT

from ratelimit.backlog import RedisBacklog
from ratelimit.control import RedisControl
from ratelimit.redis import RedisAdmission
from streams.agents import load
from streams.broker import Broker
from streams.codecs import codecs, lifecycle_codec
from streams.errors import ConfigError, StreamsError
from streams.health import HealthServer, Readiness, answering, life_signs
from streams.logs import leave_out_repeats
from streams.pipeline import AT_ONCE
from streams.producer import Producer
from streams.progress import Progress, Stalled, Watchdog
from streams.queues import WorkerType, queues_of
from streams.refill import KafkaReader
from streams.retry import RetryForwarder
from streams.settings import Settings, load_settings
from streams.topics import verify
from streams.transport import Batch, Consumer, Transport
from streams.worker import Worker

log = logging.getLogger(__name__)

LOOK_EVERY = timedelta(seconds=1)


class BootStrategy(FaustBootStrategy):
    """Starts no web server: four workers on one machine would meet on its port."""

    enable_web = False


class Process(faust.Worker):
    """Shows no spinner in a terminal, does not repeat what aiokafka repeats, and ends as soon as it has stopped.

    Faust's spinner has the root logger at DEBUG, for which aiokafka alone makes a record for every partition of every
    fetch.
    """

    def _setup_spinner_handler(self, logger: logging.Logger, level: int) -> None:
        pass

    def on_setup_root_logger(self, logger: logging.Logger, level: int) -> None:
        super().on_setup_root_logger(logger, level)
        leave_out_repeats("aiokafka")

    async def _sentinel_task(self) -> None:
        """Do not sleep for the second that Faust's sleeps before the loop is closed; nothing runs on it any more."""


class App(faust.App):
    """A Faust app whose agents feed a `Worker`."""

    BootStrategy = BootStrategy

    worker: Worker
    draining = False
    worker_type: WorkerType
    settings: Settings

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    async def on_start(self) -> None:
        try:
            await self._begin()
        except StreamsError as error:
            # Faust has made sys.stderr a log by now.
            print(f"{self.conf.id}: {error}", file=sys.__stderr__, flush=True)
            # Nothing was taken yet. Faust would unwind services that never started, with a traceback for each.
            os._exit(1)
        await super().on_start()

    async def _begin(self) -> None:
        settings = self.settings
        load(settings.handler_modules)
        await verify(settings)
        admission = RedisAdmission.from_url(
            settings.redis,
            prefix=settings.redis_prefix,
            lease=settings.lease,
            marker=settings.marker_retention,
        )
        self.reader = KafkaReader(settings)
        self.worker = Worker(
            self.worker_type,
            settings,
            codecs=codecs(settings),
            lifecycle_codec=lifecycle_codec(settings),
            admission=admission,
            producer=Producer(settings.kafka),
            reader=self.reader,
            clock=partial(datetime.now, UTC),
            control=RedisControl.from_url(settings.redis, prefix=settings.redis_prefix),
            backlog=RedisBacklog.from_url(
                settings.redis, prefix=settings.redis_prefix, keep=settings.marker_retention
            ),
        )
        # What was cancelled while no worker was there must not begin.
        await self.worker.hear()
        await self.worker.set_clock()
        self.worker.start()
        _calm_the_collector()
        _hurry_threads()
        self.forwarder = RetryForwarder(
            settings, clock=self.worker.clock, cancelled=self.worker.operators.cancellations.cover
        )
        self.forwarder.start()
        broker = Broker(settings)
        signs = life_signs(self.worker, cast(Consumer, self.consumer), self.forwarder, settings)
        self.progress = Progress(signs, broker.trouble, now_s=time.monotonic())
        readiness = Readiness([answering(admission.ping), broker.trouble, self._membership])
        self.health = HealthServer(settings, self.worker_type, self.worker, self.progress, readiness)
        await self.health.start()
        self.watchdog = Watchdog(2 * settings.stalled_after + settings.shutdown_grace)
        if settings.stalled_exit:
            self.watchdog.start()
        self.add_future(self._watch())
        self.add_future(self._drain())
        self.add_future(self._watch_progress())

    async def _watch(self) -> None:
        await self.crash(await self.worker.failure)

    async def _drain(self) -> None:
        """End when an operator says so: others get the partitions first, then what runs has its time to end.

        SIGTERM meanwhile ends the worker as at any other time.
        """
        drain = await self.worker.live.drain
        log.warning("drained by %s: what runs has %s to end", drain.by, drain.grace)
        self.draining = True
        await cast(Consumer, self.consumer).leave()
        await self.worker.hand_over(drain.grace)
        self.draining = False
        signal.raise_signal(signal.SIGTERM)

    async def _watch_progress(self) -> None:
        """Look once per second whether the worker goes on, and end it when only that helps.

        The watchdog gets no more beats once the worker has failed or stops: should something keep it from ending
        by itself, it is ended.
        """
        failure = self.worker.failure
        while not (failure.done() or self.should_stop):
            await self.progress.look(time.monotonic())
            self.watchdog.beat()
            if self.progress.beyond_help and self.settings.stalled_exit:
                why = "; ".join(self.progress.stalled)
                log.critical("the worker does not go on and ends: %s", why)
                failure.set_result(Stalled(why))
            await asyncio.sleep(LOOK_EVERY.total_seconds())

    async def _membership(self) -> str | None:
        if self.should_stop:
            return "the worker is stopping"
        if self.draining:
            return "the worker is drained"
        if not cast(Consumer, self.consumer).assignments:
            return "no partitions were assigned yet"
        return None

    async def on_stop(self) -> None:
        await super().on_stop()
        if self.draining:
            # Without partitions, Faust has not waited for what runs.
            await self.worker.hand_over(self.settings.shutdown_grace)
        if hasattr(self, "health"):
            await self.health.stop()
            await self.forwarder.stop()
            await self.worker.close()
            await self.reader.close()
        # Faust makes folders for tables even where there are none.
        shutil.rmtree(self.conf.datadir, ignore_errors=True)


def _calm_the_collector() -> None:
    """Leave what was imported out of garbage collection, and collect less often.

    Every job allocates a few dozen containers that are freed by their counts; at Python's thresholds, looking
    through the window for cycles took a quarter of the CPU time of a job that does nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _hurry_threads() -> None:
    """Let a thread that waits for the interpreter have it sooner than after Python's 5 ms.

    A record comes through the fetcher's thread and the loop's in turn: beside a busy loop each turn cost that long.
    """
    sys.setswitchinterval(0.000_5)


def worker_app(worker_type: WorkerType) -> App:
    """Return the app of a worker type with one agent per queue; raises ConfigError on wrong settings."""
    try:
        settings = load_settings()
    except ConfigError as error:
        raise SystemExit(f"streams-{worker_type}: {error}") from error
    # It warns of every commit that takes longer than the time between two, as it may whenever the broker is busy.
    logging.getLogger("mode.timers").setLevel(logging.ERROR)
    app = App(f"streams-{worker_type}", **_configuration(worker_type, settings))
    app.worker_type, app.settings = worker_type, settings
    for queue in queues_of(worker_type):
        app.agent(app.topic(queue.topic, internal=False), name=queue.name)(_agent(app))
    return app


def _agent(app: App) -> Any:
    turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
    """By the number of the partition."""

    async def take(batches: StreamT[Any]) -> None:
        async for batch in batches:
            assert isinstance(batch, Batch)
            if len(batch.records) > AT_ONCE or turns[batch.partition.number].locked():
                # What comes next of other partitions need not wait for all of it.
                app.add_future(take_all(batch))
            else:
                await take_all(batch)

    async def take_all(batch: Batch) -> None:
        async with turns[batch.partition.number]:
            await app.worker.take_all(batch.partition, batch.records, batch.offsets)
        batch.take()

    return take


def _configuration(worker_type: WorkerType, settings: Settings) -> dict[str, Any]:
    return {
        "broker": [f"kafka://{server.strip()}" for server in settings.kafka_bootstrap_servers.split(",")],
        "broker_credentials": _credentials(settings),
        "Worker": Process,
        "broker_client_id": f"streams-{worker_type}",
        "broker_commit_interval": 0.1,
        "broker_max_poll_records": 500,
        # A handler may run for as long as its timeout says; being alive is told by heartbeats.
        "broker_max_poll_interval": 86_400.0,
        "broker_session_timeout": settings.kafka_session_timeout.total_seconds(),
        "broker_heartbeat_interval": settings.kafka_session_timeout.total_seconds() / 6,
        "broker_request_timeout": 40.0,
        "consumer_max_fetch_size": 256 * 1024,
        "consumer_auto_offset_reset": "earliest",
        "stream_wait_empty": True,
        "agent_supervisor": "mode.CrashingSupervisor",
        # There are no tables; one standby replica keeps Faust's sticky assignor.
        "table_standby_replicas": 1,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "datadir": str(Path(tempfile.gettempdir()) / f"streams-{worker_type}-{settings.worker_id}"),
        "store": "memory://",
    }


def _credentials(settings: Settings) -> Any:
    kafka = settings.kafka
    protocol = kafka["security.protocol"].upper()
    context = None
    if protocol.endswith("SSL"):
        import ssl

        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_location)
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=kafka.get("sasl.username"),
            password=kafka.get("sasl.password"),
            mechanism=kafka.get("sasl.mechanism"),
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context else None
