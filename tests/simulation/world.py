"""Run the world of one seed: start its processes, let its faults happen, heal it, and judge what came of it."""

import asyncio
import gc
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any
from unittest.mock import patch

from providers.errors import RateLimited
from schemas import Codec, files
from streams.codecs import schema_of
from streams.delivery import EPOCH
from streams.errors import Poison, Snooze, Transient
from streams.jobs import HANDLERS, TYPE_OF_PAYLOAD, Job
from streams.lifecycle import Lifecycle
from streams.producer import Message
from streams.publication import Publication, Publisher
from streams.queues import QUEUES
from streams.settings import Settings, load_settings
from tests.simulation.broker import WORLD_BEGINS, Broker, Group, Stored
from tests.simulation.faults import Faults
from tests.simulation.jobs import HANDLERS_HERE, QUEUES_HERE, TYPES_HERE, Told, payload_of
from tests.simulation.judge import Judge
from tests.simulation.ledger import Redis
from tests.simulation.loop import Loop, NumberedTask, Process, Stalled
from tests.simulation.member import Member
from tests.simulation.plan import TROUBLE_SECONDS, Plan

LEASE = timedelta(seconds=3)
DRAIN_SECONDS = 240.0
"""How long after its healing a world may take until every job has ended and every position is committed."""


@dataclass
class Execution:
    """One call of a handler."""

    number: int
    attempt: int
    process: Process
    began: float
    began_by_clock: datetime
    ended: float | None = None
    how: str = ""

    def end(self, now: float) -> float:
        """Return when it ended, its process's death included."""
        return self.ended if self.ended is not None else (self.process.died_at or now)


@dataclass
class Report:
    """What came of a seed."""

    seed: int
    violations: list[str]
    digest: str
    seconds: float
    """How long the world lasted, by its own time."""
    executions: int
    faults: int
    trace: list[str] = field(default_factory=list)


class World:
    """Everything there is, in one process of ours."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.chance = random.Random(f"world {plan.seed}")
        order = random.Random(f"order {plan.seed}")
        self.loop = Loop(order, shuffled=plan.shuffled)  # type: ignore[abstract]
        self.codecs, self.events_codec = codecs()
        self.broker = Broker(self.loop, self.chance, plan.partitions, plan.gaps)
        self.group = Group(self.broker, self.chance, [queue.topic for queue in QUEUES_HERE])
        self.redis = Redis(self.loop, self.chance, LEASE, self.now)
        self.members: list[Member] = []
        self.executions: list[Execution] = []
        self.snoozed: dict[int, int] = {}
        self.healed_at: float | None = None
        self.trace: list[str] | None = [] if keep_trace else None
        self._digest = hashlib.sha256()
        self._settings = _settings()
        self.judge = Judge(self)
        self.faults = Faults(self)
        self.broker.on_append.append(self._appended)
        self.group.on_commit.append(self._committed)

    def now(self) -> datetime:
        """Return the true time."""
        return EPOCH + timedelta(seconds=WORLD_BEGINS + self.loop.time())

    def tell(self, what: str) -> None:
        """Add a line to the story of this world."""
        line = f"{self.loop.time():9.4f} {what}"
        self._digest.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def spawn(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """Begin a coroutine in a process; the world is told when it fails."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.judge.object(f"{process.name}: {error!r}")

        process.spawn(work).add_done_callback(look)

    # -- processes ---------------------------------------------------------------------------------------

    def start_member(self) -> Member:
        """Start one more worker process."""
        index = len(self.members)
        process = Process(self.loop, f"worker-{index}")
        process.world = self
        settings = self._settings.model_copy(
            update={
                "worker_id": process.name,
                "window_records": self.plan.window_records,
                "window_span": self.plan.window_span,
                "worker_concurrency": self.plan.concurrency,
            }
        )
        member = Member(process, self, settings)
        member.ahead = timedelta(seconds=self.plan.skews[index % len(self.plan.skews)])
        self.members.append(member)
        self.tell(f"{process.name} starts")
        member.start()
        return member

    def alive(self) -> list[Member]:
        """Return the members whose processes exist."""
        return [member for member in self.members if not member.process.dead]

    def forwards(self, process: Process) -> bool:
        """Return whether the retry forwarder of a process has the partitions of the retry topics."""
        running = [one for one in self.members if not one.process.dead and not one.process.stopped]
        return bool(running) and running[0].process is process

    def read(self, process: Process, batch: Sequence[Stored]) -> None:
        for record in batch:
            record.copies += 1
        first, last = batch[0], batch[-1]
        self.tell(f"{process.name} reads {first.topic}/{first.partition}/{first.offset}..{last.offset}")

    # -- handlers ----------------------------------------------------------------------------------------

    async def perform(self, process: Process, job: Job[Any]) -> Told:
        """Do what the script of a job says for this attempt."""
        number = job.payload.number
        planned = self.plan.jobs[number]
        step = planned.step(job.attempt)
        member = next(one for one in self.members if one.process is process)
        run = Execution(number, job.attempt, process, self.loop.time(), member.clock())
        self.executions.append(run)
        self.tell(f"{process.name} runs {number} attempt {job.attempt}")
        how = step.how
        if self.snoozed.get(number, 0) < planned.snoozes:
            how = "snooze" if number % 2 else "limited"
        try:
            if step.progress:
                job.progress(0.5, "half")
            if step.work_seconds or how == "hang":
                await asyncio.sleep(100 if how == "hang" else step.work_seconds)
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            run.ended, run.how = self.loop.time(), how
            self.tell(f"{process.name} ends {number} attempt {job.attempt}: {how}")
        match how:
            case "transient":
                raise Transient("try again")
            case "bug":
                raise KeyError("a bug")
            case "poison":
                raise Poison("never")
            case "snooze" | "limited":
                self.snoozed[number] = self.snoozed.get(number, 0) + 1
                if how == "snooze":
                    raise Snooze("not now", delay=timedelta(seconds=0.7))
                raise RateLimited("slow down", timedelta(seconds=1.2))
            case _:
                children = [one for one in self.plan.jobs if one.parent == number]
                for child in children:
                    job.follow_up(payload_of(child.queue)(number=child.number))
                return Told(number=number)

    # -- the story ---------------------------------------------------------------------------------------

    def _appended(self, record: Stored) -> None:
        about = _about(record)
        self.tell(f"append {record.topic}/{record.partition}/{record.offset} {about}")
        self.judge.appended(record)

    def _committed(self, name: str, positions: Any, accepted: bool) -> None:
        listed = " ".join(f"{one.topic}/{one.number}={at}" for one, at in positions.items())
        self.tell(f"{name} commits {listed} {'accepted' if accepted else 'refused'}")
        if accepted:
            self.judge.committed(name, positions)

    async def _publish(self) -> None:
        publisher = Publisher(self.codecs, Lifecycle(self.events_codec))
        todo: list[tuple[float, Callable[[], object]]] = []
        for job in self.plan.jobs:
            if job.parent is not None:
                continue
            for copy in range(job.copies):
                todo.append(
                    (job.at + copy * self.chance.choice((0.0, 0.01, 2.0)), self._publication(publisher, job))
                )
        for at, queue, organization, data in self.plan.poison:
            bad = Message(
                queue.topic, organization.encode(), data, [("organization-id", organization.encode())]
            )
            todo.append((at, partial(self.broker.append, bad)))
        for at, act in sorted(todo, key=lambda one: one[0]):
            await asyncio.sleep(max(0.0, at - self.loop.time()))
            await self.broker.recovered()
            act()

    def _publication(self, publisher: Publisher, job: Any) -> Callable[[], None]:
        prepared: list[Message] = []

        def publish() -> None:
            if not prepared:
                wanted = Publication(
                    payload_of(job.queue)(number=job.number),
                    job.organization,
                    job_id=None if job.keyed else job.job_id,
                    idempotency_key=job.key if job.keyed else None,
                    delay=timedelta(seconds=job.delay_seconds) if job.delay_seconds else None,
                    ordering_key=job.line,
                )
                ready = publisher.prepare(wanted, self.now())
                assert ready.job_id == job.job_id
                prepared.extend(ready.messages)
            for message in prepared:
                self.broker.append(message)

        return publish

    async def _live(self) -> None:
        watching = self.loop.create_task(self.group.watch())
        for _ in range(self.plan.members):
            self.start_member()
        publishing = self.loop.create_task(self._publish())
        await self.faults.happen()
        await asyncio.sleep(max(0.0, TROUBLE_SECONDS - self.loop.time()))
        self.faults.heal()
        self.healed_at = self.loop.time()
        self.tell("healed")
        await publishing
        await self._drain(self.loop.time() + DRAIN_SECONDS)
        watching.cancel()

    async def _drain(self, deadline: float) -> None:
        """Return when nothing is left to do for a second: a worker that was cut off may still write of its own."""
        calm_since: float | None = None
        while self.loop.time() < deadline:
            if not self.judge.drained():
                calm_since = None
            elif calm_since is None:
                calm_since = self.loop.time()
            elif self.loop.time() - calm_since >= 1.0:
                return
            self.faults.replace_the_dead()
            await asyncio.sleep(0.25)

    def run(self) -> Report:
        """Let the world live and return what came of it."""
        with simulated(self):
            try:
                self.loop.run_until_complete(self._live())
            except Stalled as stalled:
                self.judge.object(str(stalled))
            self.judge.judge()
            report = Report(
                self.plan.seed,
                self.judge.violations,
                self._digest.hexdigest(),
                self.loop.time(),
                len(self.executions),
                len(self.plan.faults),
                self.trace or [],
            )
            self.loop.end(member.process for member in self.members)
        return report


def _about(record: Stored) -> str:
    """Return what tells a record from another, in short."""
    facts = record.facts
    what = facts.get("ce_id", b"").decode()
    turn = f"attempt {facts.get('attempt', b'1').decode()}" if what else ""
    digest = hashlib.sha256(record.value or b"")
    for name, data in record.headers:
        digest.update(name.encode() + data)
    return f"{what} {turn} {digest.hexdigest()[:8]}"


@cache
def codecs() -> tuple[dict[str, Codec], Codec]:
    """Return the codecs of the queues and of lifecycle events."""
    with patch.dict(HANDLERS, HANDLERS_HERE, clear=True), patch.dict(TYPE_OF_PAYLOAD, TYPES_HERE, clear=True):
        return {
            queue.name: Codec(schema_of(queue) if queue in QUEUES_HERE else files.current(queue.name))
            for queue in QUEUES.values()
        }, Codec(files.current(files.LIFECYCLE))


@cache
def _settings() -> Settings:
    options: dict[str, Any] = {
        "_env_file": None,
        "worker_id": "worker",
        "process_count": 1,
        "lease": LEASE,
        "revoke_grace": timedelta(seconds=1.5),
        "shutdown_grace": timedelta(seconds=2),
    }
    return load_settings(**options)


class FakeProcess:
    """Stands in for psutil.Process: how much memory the tests take is none of a world's business."""

    rss = 50_000_000

    def memory_info(self) -> "FakeProcess":
        return self


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Put the world's time, chance and handlers in the place of the real ones."""
    numbers = iter(range(1, 10**12))

    def event_id() -> str:
        return f"00000000-0000-7000-8000-{next(numbers):012x}"

    before, disabled = random.getstate(), logging.root.manager.disable
    random.seed(world.plan.seed)
    NumberedTask.number_from_zero()
    with ExitStack() as stack:
        for name, value in {
            "time.monotonic": lambda: world.loop.time() + 1000.0,
            "time.time": lambda: world.loop.time() + WORLD_BEGINS,
            "time.time_ns": lambda: int((world.loop.time() + WORLD_BEGINS) * 1e9),
            "psutil.Process": FakeProcess,
            "socket.gethostname": lambda: "host",
            "streams.lifecycle.event_id": event_id,
            # Half of what a world costs is looking for what is not there yet.
            "streams.worker.FLUSH": timedelta(milliseconds=200),
            "streams.refill.LOOK_EVERY": timedelta(milliseconds=50),
            "streams.runs.WATCHED_FROM": world.plan.watched_from,
            "streams.surplus.LASTS_SECONDS": world.plan.lasts_seconds,
            "streams.offsets.BEHIND_SKIPPED": world.plan.behind_skipped,
        }.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(patch.dict(HANDLERS, HANDLERS_HERE, clear=True))
        stack.enter_context(patch.dict(TYPE_OF_PAYLOAD, TYPES_HERE, clear=True))
        logging.disable(logging.CRITICAL)
        # A world keeps what it makes until it ends: to look for garbage in it takes a seventh of the time.
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            logging.disable(disabled)
            random.setstate(before)
