"""Where a fault plays: a pipeline of its own on the stack, its workers, its sink, its publisher, and who watches."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import KafkaException
from redis import Redis
from sqlalchemy import NullPool, create_engine, make_url, text

import devstack
from devstack.process import free_port
from streams.client import SyncJobs
from streams.queues import LIFECYCLE_TOPIC, queues_of
from streams.settings import Settings, check_worker_type, load_settings
from tests.chaos import collect
from tests.chaos.commits import TOPIC, Commits, commits
from tests.chaos.crew import Crew, Member
from tests.chaos.history import History, Incident
from tests.chaos.oracle import Limits
from tests.chaos.proxy import Proxy
from tests.chaos.publishing import Publishing
from tests.chaos.watching import Committed, Listener
from tests.processes import ROOT, Pipeline, pipeline, wait_until
from tracking.database import open_database
from tracking.migrate import upgrade
from tracking.rebuild import ranges_of
from tracking.store import Store

TEMPLATE = "chaos_template"
PROXIED = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "redis": "REDIS_URL", "postgres": "DATABASE_URL"}
ENVIRONMENT = {
    "HANDLER_MODULES": "tests.chaos.handlers",
    "CHAOS_WORKER_PID": "",
    "LEASE": "3s",
    "KAFKA_SESSION_TIMEOUT": "6s",
    "REVOKE_GRACE": "2s",
    "SHUTDOWN_GRACE": "5s",
    "PROCESS_COUNT": "2",
}


class Theatre:
    """A stack of its own for the whole catalogue; each fault gets a scene on it."""

    def __init__(self, folder: Path) -> None:
        self.kafka_port, self.kafka_proxy_port = free_port(), free_port()
        self.stack = devstack.start(folder, proxied_kafka=(self.kafka_port, self.kafka_proxy_port))
        self.server = create_engine(self.stack.postgres, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self.sql(f"create database {TEMPLATE}")
        upgrade(self.database_url(TEMPLATE))

    def sql(self, statement: str) -> None:
        """Carry out a statement as the server's superuser."""
        with self.server.connect() as connection:
            connection.execute(text(statement))

    def database_url(self, name: str) -> str:
        return make_url(self.stack.postgres).set(database=name).render_as_string(hide_password=False)

    @contextmanager
    def scene(self, folder: Path, seed: int) -> Iterator["Scene"]:
        """Give a fault new topics, groups and databases, and end everything that it started."""
        folder.mkdir(parents=True, exist_ok=True)
        redis_url = urlsplit(self.stack.redis)._replace(path="/1").geturl()
        with Redis.from_url(redis_url) as client:
            client.flushdb()
        name = f"chaos_{seed}_{time.monotonic_ns()}"
        self.sql(f"create database {name} template {TEMPLATE}")
        with pipeline(self.stack, redis_url, folder) as running:
            scene = Scene(self, running, self.database_url(name), random.Random(seed))
            try:
                yield scene
            finally:
                scene.close()
        self.sql(f"drop database {name} with (force)")

    def close(self) -> None:
        self.server.dispose()
        self.stack.stop(clean=True)


class Scene:
    """What a fault acts on.

    Started before the curtain: the watchers and the sink. A fault starts workers, publishes, does harm, heals
    and drains; the history is then what the oracle judges.
    """

    def __init__(self, theatre: Theatre, running: Pipeline, database_url: str, chance: random.Random) -> None:
        self.theatre = theatre
        self.stack = theatre.stack
        self.pipeline = running
        self.database_url = database_url
        self.limits = Limits()
        self.canary = f"canary-{chance.getrandbits(64):016x}"
        self.effects = running.folder / "effects"
        (self.effects / "effects").mkdir()
        running.environment |= ENVIRONMENT | {"DATABASE_URL": database_url}
        self.settings: Settings = load_settings(
            kafka_bootstrap_servers=self.stack.kafka,
            redis_url=running.environment["REDIS_URL"],
            handler_modules=("tests.chaos.handlers",),
            kafka_partitions=4,
            publish_timeout=timedelta(seconds=4),
        )
        self.crew = Crew()
        self.proxies: dict[str, Proxy] = {}
        self._paused: set[str] = set()
        self._seed = chance.getrandbits(32)
        self.publishing = Publishing(SyncJobs(self.settings), self.canary, random.Random(self._seed))
        self.listener = Listener(self.settings.kafka, 4)
        self._committed: dict[str, Committed] = {}
        self._commits_from = {n: end for n, (_, end) in ranges_of(self.settings.kafka, TOPIC).items()}
        self._sink: subprocess.Popen[bytes] | None = None
        self._healed_at: float | None = None
        self._drained_after: float | None = None
        for thread in (self.crew, self.listener):
            thread.start()

    # -- who plays ----------------------------------------------------------------------------------------

    def proxy(self, service: str) -> Proxy:
        """Put a proxy before `kafka`, `redis` or `postgres`, for workers and sink that start from now on."""
        if service not in self.proxies:
            variable = PROXIED[service]
            if service == "kafka":
                port = self.theatre.kafka_proxy_port
                made = Proxy(self.theatre.kafka_port, port=port, chance=random.Random(self._seed)).start()
                self.pipeline.environment[variable] = f"127.0.0.1:{port}"
            else:
                address = urlsplit(self.pipeline.environment[variable])
                assert address.port is not None
                made = Proxy(address.port, chance=random.Random(self._seed)).start()
                credentials = address.netloc.rpartition("@")[0]
                self.pipeline.environment[variable] = address._replace(
                    netloc=f"{credentials}@127.0.0.1:{made.port}"
                ).geturl()
            self.proxies[service] = made
        return self.proxies[service]

    def worker(self, worker_type: str = "primary", *, keep: bool = True, **environment: str) -> Member:
        """Start a worker; `keep` starts it again whenever it ends by itself."""
        return self.crew.add(self.pipeline.worker(worker_type, **environment), keep=keep).start()

    def workers(self, count: int, *, keep: bool = True, **environment: str) -> list[Member]:
        """Start primary workers and return them once each of them has run a job: publish before, or meanwhile."""
        members = [self.worker(keep=keep, **environment) for _ in range(count)]
        self.await_runs({member.pid for member in members})
        return members

    def await_runs(self, pids: set[int], within_seconds: float = 40) -> None:
        """Wait until each of some workers has started a job."""
        ledger = self.effects / "ledger"
        wait_until(
            lambda: pids <= {run.pid for run in collect.executions(ledger)},
            within_seconds,
            "all workers run jobs",
        )

    def under_load(self, per_second: float = 80, *, workers: int = 2, ends: int = 150) -> list[Member]:
        """Start workers, and a steady load once all have joined, and let them find their pace: until so many jobs end.

        And until all have ended that were published before all workers ran: what was read again as they joined, and
        waits, would run again on a queue that goes on without Redis, if that were hurt now.
        """
        members = [self.worker() for _ in range(workers)]
        wait_until(lambda: self.pipeline.members() == workers, 40, "all workers have joined")
        self.publishing.steadily(per_second)
        self.await_runs({member.pid for member in members})
        earlier = [one.job_id for one in self.publishing.published]
        self.wait_for_ends(ends)
        self.wait_for_end_of(earlier)
        return members

    def start_sink(self, *program: str, **environment: str) -> subprocess.Popen[bytes]:
        """Run the tracking sink as an operator would, or a program in its place, and return it."""
        with (self.pipeline.folder / "sink.log").open("ab") as log:
            self._sink = subprocess.Popen(
                program or (str(Path(sys.executable).parent / "streams"), "tracking"),
                env={**self.environment, **environment}, cwd=ROOT, stdout=log, stderr=log,
            )  # fmt: skip
        return self._sink

    @property
    def sink(self) -> subprocess.Popen[bytes]:
        """Return the sink's process, to be hurt."""
        assert self._sink is not None
        return self._sink

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the scene's programs."""
        return {**os.environ, **self.pipeline.environment}

    def committed(self, worker_type: str = "primary") -> dict[tuple[str, int], int]:
        """Return the committed positions of a worker type's queues, nothing while there are none."""
        if worker_type not in self._committed:
            topics = [queue.topic for queue in queues_of(check_worker_type(worker_type))]
            self._committed[worker_type] = Committed(
                self.settings.kafka, f"streams-{worker_type}", topics, self.settings.kafka_partitions
            )
        try:
            return self._committed[worker_type]()
        except KafkaException:
            return {}

    def commits(self) -> Mapping[str, Commits]:
        """Return all that its groups have committed."""
        return commits(self.settings.kafka, self._commits_from)

    # -- what is done to them -----------------------------------------------------------------------------

    def happened(self, what: str, begin: float, *, end: float | None = None, repeats: bool = True) -> None:
        """Say that something was done to all workers; `repeats` lets what was in flight run again."""
        self.crew.incidents.append(Incident(what, begin, end or time.time(), None, repeats))

    @contextmanager
    def incident(self, what: str, *, repeats: bool = True) -> Iterator[None]:
        """Say that what happens inside is done to all workers."""
        begin = time.time()
        try:
            yield
        finally:
            self.happened(what, begin, repeats=repeats)

    def down(self, what: str) -> None:
        """Let every `downstream` deed fail, until `up`."""
        (self.effects / f"down-{what}").touch()

    def up(self, what: str) -> None:
        """Let them succeed again."""
        (self.effects / f"down-{what}").unlink(missing_ok=True)

    def pause(self, service: str) -> None:
        """Freeze a service of the stack, until `heal`."""
        self.stack.service(service).pause()
        self._paused.add(service)

    def heal(self) -> None:
        """Undo all harm: services run, proxies pass, workers go on."""
        for name in ("kafka", "redis", "postgres"):
            service = self.stack.service(name)
            if name in self._paused:
                service.resume()
            service.start()
        self._paused.clear()
        for proxy in self.proxies.values():
            proxy.heal()
        for member in self.crew.members:
            member.thaw()
        self.up("downstream")
        self._healed_at = time.time()

    # -- waiting ------------------------------------------------------------------------------------------

    def wait_for_ends(self, count: int, within_seconds: float = 60) -> None:
        """Wait until so many more jobs have come to an end."""
        wanted = len(self.listener.ended) + count
        wait_until(lambda: len(self.listener.ended) >= wanted, within_seconds, f"{count} more jobs end")

    def wait_for_end_of(self, job_ids: list[str], within_seconds: float = 60) -> None:
        """Wait until certain jobs have come to an end."""
        wait_until(lambda: self.listener.ended.issuperset(job_ids), within_seconds, f"{job_ids} end")

    def play(self, seconds: float) -> None:
        """Let time pass while everything runs."""
        threading.Event().wait(seconds)

    def drain(self, within_seconds: float | None = None) -> bool:
        """Publish nothing more and wait until all has ended and every position has arrived; False if not in time."""
        within = within_seconds or self.limits.drain_seconds
        self.limits.drain_seconds = within
        self.publishing.stop(within)
        since = self._healed_at or time.time()
        with suppress(AssertionError):
            wait_until(self._drained, max(since + within - time.time(), 1), "drained")
            self._drained_after = time.time() - since
        return self._drained_after is not None

    def recover(self, load_seconds: float, drain_seconds: float) -> None:
        """Heal, let some load pass, and drain."""
        self.heal()
        self.play(load_seconds)
        self.drain(drain_seconds)

    def _drained(self) -> bool:
        if not self.listener.ended.issuperset(one.job_id for one in self.publishing.published):
            return False
        time.sleep(0.1)
        return all(
            self.committed().get(place, 0) >= end
            for place, end in self._ends(queue.topic for queue in queues_of("primary"))
        )

    def _ends(self, topics: Any) -> Iterator[tuple[tuple[str, int], int]]:
        for topic in topics:
            for partition, (_, end) in ranges_of(self.settings.kafka, topic).items():
                yield (topic, partition), end

    # -- what it came to ----------------------------------------------------------------------------------

    def history(self) -> History:
        """Stop everything and return what happened."""
        self.publishing.stop()
        self.crew.close()
        raw = self._all_events()
        database = open_database(self.database_url)
        self._await_sink(Store(database), len(raw))
        with ThreadPoolExecutor() as meanwhile:  # what waits for the broker need not wait in turn
            records = meanwhile.submit(collect.records, self.settings.kafka, self.settings.kafka_partitions)
            commits = meanwhile.submit(self.commits)
            self._stop_sink()
            stored = collect.rows(database)
            leaks = list(collect.leaks_in_store(self.canary, database))
            rebuilt = meanwhile.submit(collect.rebuilt_rows, database, self.settings)
            leaks += collect.leaks_in_redis(self.canary, self.settings.redis)
            leaks += collect.leaks(self.canary, kept := records.result(), raw, self.pipeline.folder)
            folded = collect.folded_rows(raw)
        database.dispose()
        return History(
            published=list(self.publishing.published),
            executions=collect.executions(self.effects / "ledger"),
            effects=[path.name for path in (self.effects / "effects").glob("[!.]*")],
            told=list(self.listener.told),
            carried=[collect.carried(one) for one in kept],
            incidents=list(self.crew.incidents),
            commits=[
                one
                for group in commits.result().values()
                for place in group.places.values()
                for one in place
                if one.topic in collect.TOPICS
            ],
            memory=list(self.crew.memory),
            stored=stored,
            folded=folded,
            rebuilt=rebuilt.result(),
            leaks=leaks,
            healed_at=self._healed_at,
            drained_after=self._drained_after,
        )

    def _all_events(self) -> list[bytes]:
        """Return every lifecycle event, once no worker can write another."""
        end = sum(end for _, end in self._ends([LIFECYCLE_TOPIC]))
        wait_until(lambda: self.listener.read() >= end, 30, "the listener has read all events")
        self.listener.close()
        return self.listener.raw

    def _await_sink(self, store: Store, events: int) -> None:
        if self._sink is None or self._sink.poll() is not None:
            self.start_sink()
        with suppress(AssertionError):  # then the rows differ, and the oracle says which
            wait_until(
                lambda: sum(store.positions(LIFECYCLE_TOPIC).values()) >= events, 60, "the sink caught up"
            )

    def _stop_sink(self) -> None:
        if self._sink is not None and self._sink.poll() is None:
            self._sink.terminate()
            try:
                self._sink.wait(20)
            except subprocess.TimeoutExpired:
                self._sink.kill()
                self._sink.wait()

    def close(self) -> None:
        """End everything that was started, whatever came of it."""
        self.heal()
        self.publishing._enough.set()
        self.crew._enough.set()
        self.listener._enough.set()
        for member in self.crew.members:
            member.stop()
        self._stop_sink()
        for proxy in self.proxies.values():
            proxy.close()
        for group in self._committed.values():
            group.close()
        self.publishing.jobs.close()
