"""What a seed decides before anything runs: which jobs there are, what they do, and what goes wrong when."""

import random
from dataclasses import dataclass, field
from typing import Literal
from uuid import NAMESPACE_URL, uuid5

from ratelimit import identity
from streams.queues import CRITICAL, Queue
from tests.simulation.jobs import MAX_ATTEMPTS, QUEUES_HERE, How, Step

ORGANIZATIONS = ("acme", "birch", "cedar", "dunes")
TROUBLE_SECONDS = 14.0
"""From then on, nothing goes wrong any more."""

Kind = Literal[
    "crash", "crash in produce", "crash in redis", "crash in forwarder", "stop", "join", "rebalance", "pause", "cut",
    "redis down", "redis down for one", "redis slow", "redis lossy", "flush",
    "broker down", "broker refuses", "commits lost", "clock jump",
]  # fmt: skip

WEIGHTS: dict[Kind, int] = {
    "crash": 6, "crash in produce": 4, "crash in redis": 4, "crash in forwarder": 1, "stop": 3, "join": 3,
    "rebalance": 6, "pause": 3, "cut": 3, "redis down": 2, "redis down for one": 2, "redis slow": 2, "redis lossy": 2,
    "flush": 1, "broker down": 2, "broker refuses": 1, "commits lost": 2, "clock jump": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong; `size` means what its kind needs: steps, calls, or seconds."""

    at: float
    kind: Kind
    member: int
    size: float
    flag: bool


@dataclass(slots=True)
class Planned:
    """One job: when it is published and what each of its executions does."""

    number: int
    queue: Queue
    organization: str
    at: float
    delay_seconds: float
    copies: int
    keyed: bool
    steps: tuple[Step, ...]
    snoozes: int = 0
    job_id: str = ""
    line: str | None = None
    """Its ordering key."""
    parent: int | None = None

    @property
    def key(self) -> str:
        """Return its idempotency key."""
        return f"key-{self.number}" if self.keyed else self.job_id

    def step(self, attempt: int) -> Step:
        """Return what an attempt does, counted from 1."""
        return self.steps[min(attempt, len(self.steps)) - 1]

    @property
    def attempts(self) -> int:
        """Return how many attempts it takes."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self.step(attempt).how in ("done", "poison"):
                return attempt
        return MAX_ATTEMPTS

    @property
    def completes(self) -> bool:
        return self.step(self.attempts).how == "done"


@dataclass(slots=True)
class Plan:
    """A whole world, before it begins."""

    seed: int
    shuffled: bool
    gaps: bool
    partitions: int
    members: int
    skews: list[float]
    concurrency: int | None
    watched_from: int
    window_records: int
    window_span: int
    lasts_seconds: float
    """For how long a lane must have work of which something is skipped."""
    behind_skipped: int
    jobs: list[Planned] = field(default_factory=list)
    poison: list[tuple[float, Queue, str, bytes]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def flushes(self) -> bool:
        return any(fault.kind == "flush" for fault in self.faults)


def plan_of(seed: int, only: Kind | None = None) -> Plan:
    """Return the world of a seed; with `only`, eight faults of that kind go wrong in it and no others."""
    chance, skipping = random.Random(f"plan {seed}"), random.Random(f"skipping {seed}")
    skewed = chance.random() < 0.3
    plan = Plan(
        seed=seed,
        shuffled=chance.random() < 0.5,
        gaps=chance.random() < 0.3,
        partitions=chance.choice((1, 2, 2, 3)),
        members=chance.choice((1, 2, 2, 3)),
        skews=[chance.uniform(-5, 5) if skewed else 0.0 for _ in range(40)],
        concurrency=chance.choice((None, 1, 2, 4)),
        watched_from=chance.choice((1, 3, 100)),
        window_records=chance.choice((2, 5, 1000)),
        window_span=chance.choice((4, 10_000, 10_000)),
        lasts_seconds=skipping.choice((0.0, 0.0, 0.5)),
        behind_skipped=skipping.choice((1, 10)),
    )
    queues = chance.sample(QUEUES_HERE, chance.randint(1, 3))
    for _ in range(chance.randint(10, 30)):
        _add_job(plan, chance, queues)
    _put_in_lines(plan)
    for number in range(chance.choice((0, 0, 1, 3))):
        place = chance.choice(queues), chance.choice(ORGANIZATIONS)
        plan.poison.append((chance.uniform(0, 6), *place, b"not avro %d" % number))
    kinds = WEIGHTS if only is None else {only: 1}
    number = chance.choice((0, 1, 2, 3, 4, 6, 8)) if only is None else 8
    plan.faults = sorted((_fault(chance, kinds) for _ in range(number)), key=lambda one: one.at)
    return plan


def _add_job(plan: Plan, chance: random.Random, queues: list[Queue]) -> None:
    number = len(plan.jobs)
    job = Planned(
        number=number,
        queue=chance.choice(queues),
        organization=ORGANIZATIONS[0] if chance.random() < 0.5 else chance.choice(ORGANIZATIONS),
        at=chance.uniform(0, chance.choice((0.1, 8))),
        delay_seconds=chance.uniform(0.1, 8) if chance.random() < 0.1 else 0.0,
        copies=chance.choice((2, 3)) if chance.random() < 0.1 else 1,
        keyed=chance.random() < 0.3,
        steps=_steps(chance),
        snoozes=chance.choice((1, 2)) if chance.random() < 0.08 else 0,
        job_id=f"job-{number}",
    )
    if job.keyed:
        job.job_id = str(uuid5(NAMESPACE_URL, f"{job.organization}/{job.key!a}"))
    plan.jobs.append(job)
    for index in range(job.step(job.attempts).follow_ups if job.completes else 0):
        child_id = str(uuid5(NAMESPACE_URL, f"{job.organization}/{job.key}/{index}"))
        child = Planned(
            len(plan.jobs), chance.choice(QUEUES_HERE), job.organization, 0.0, 0.0, 1, False,
            (Step(chance.uniform(0.0, 0.2)),), job_id=child_id, parent=number,
        )  # fmt: skip
        plan.jobs.append(child)


def _put_in_lines(plan: Plan) -> None:
    """Give jobs ordering keys, in two worlds of three; a draw of its own, so that nothing else depends on it."""
    chance = random.Random(f"lines {plan.seed}")
    share = chance.choice((0.0, 0.3, 0.9))
    for job in plan.jobs:
        if job.parent is None and chance.random() < share:
            job.line = chance.choice("ab")


def _steps(chance: random.Random) -> tuple[Step, ...]:
    def work() -> float:
        kind = chance.random()
        return 0.0 if kind < 0.3 else chance.uniform(0.001, 0.3) if kind < 0.85 else chance.uniform(0.5, 4.0)

    last = Step(work(), follow_ups=chance.choice((0, 0, 0, 0, 1, 2)), progress=chance.random() < 0.2)
    kind = chance.random()
    if kind < 0.65:
        return (last,)
    if kind < 0.71:
        return (Step(work(), "poison"),)
    how: How = chance.choice(("transient", "transient", "bug", "hang"))
    if kind < 0.77:
        return (Step(min(work(), 0.3), "transient" if how == "hang" else how),)
    failures = tuple(Step(work(), how) for _ in range(1 if how == "hang" else chance.randint(1, 2)))
    return (*failures, last)


def _fault(chance: random.Random, kinds: dict[Kind, int]) -> Fault:
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    match kind:
        case "crash":
            size: float = chance.randrange(0, 1500)
        case "crash in produce" | "crash in redis" | "crash in forwarder":
            size = chance.randrange(1, 12)
        case "commits lost":
            size = chance.randrange(1, 5)
        case "clock jump":
            size = chance.uniform(-5, 5)
        case _:
            size = chance.uniform(0.3, 7)
    return Fault(chance.uniform(0, 12), kind, chance.randrange(0, 4), size, chance.random() < 0.5)


def identity_of(job: Planned) -> str:
    """Return by what the ledger knows a job."""
    return identity(job.organization, job.key)


def unleased(queue: Queue) -> bool:
    """Return whether jobs of a queue may run without a lease while Redis is away."""
    return queue is CRITICAL or queue.on_redis_down == "open"
