"""Faults of load: everything fails for want of one thing, the broker can write no more, slow jobs among quick ones."""

import random
import resource
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

import psutil

from devstack.process import Process
from streams.breaker import TYPE_STREAK
from streams.jobs import Payload
from streams.offset_map import settled_beyond
from streams.queues import LIFECYCLE_TOPIC, WEBHOOKS
from tests.chaos.collect import executions
from tests.chaos.crew import Member
from tests.chaos.faults import LONG, Figures, fault
from tests.chaos.handlers import Quick, Threaded, Urgent
from tests.chaos.history import Published
from tests.chaos.scene import Scene
from tests.processes import wait_until
from tracking.rebuild import ranges_of

STORM_JOBS = 50_000 if LONG else 5_000
OUTAGE_SECONDS = 150 if LONG else 40
STORM_DRAIN_SECONDS = 400 if LONG else 90
PROBES = 12
"""Most attempts of one worker on what is down, once it knows: its cool-down is half of what the outage has lasted."""

OTHERS_WAIT_SECONDS = 5.0
"""What one in a hundred of other types may wait, on a machine whose two cores run all of it: a hop of the storm."""


def _others(number: int, chance: random.Random, secret: str) -> Payload:
    """Return a job of a type that needs nothing: on the storm's own queue, or on another one."""
    kind = chance.choice([Urgent, Threaded])
    return kind(number=number, work_ms=5, password=secret)


@fault("retry-storm", seconds=150, alone=True)
def retry_storm(scene: Scene, seed: random.Random) -> Figures:
    """What 5,000 jobs need is down, 50,000 with CHAOS_LONG: few attempts are spent, other types do not notice."""
    figures = Figures()
    scene.publishing.steadily(40, _others)
    members = scene.workers(2)
    _await_calm(scene)
    calm = time.time()
    scene.play(8)
    with scene.incident("downstream down", repeats=False):
        scene.down("downstream")
        began, busy = time.time(), _cpu_seconds(members)
        storm = _storm(scene)
        scene.play(max(OUTAGE_SECONDS - (time.time() - began), 0))
    healed = time.time()
    figures.note(
        "cpu", f"{(_cpu_seconds(members) - busy) / (healed - began) / len(members):.0%} of each worker's"
    )
    scene.recover(3, STORM_DRAIN_SECONDS)
    runs = executions(scene.effects / "ledger")
    attempts = [run.started for run in runs if run.job_id in storm and run.started < healed]
    # What runs when it opens fails, too; and once more, for it first holds back one organization and then all.
    bound = len(members) * (TYPE_STREAK + 2 * WEBHOOKS.concurrency + PROBES)
    figures.check(
        "attempts", len(attempts) <= bound, f"{len(attempts)} of at most {bound}", "a storm of attempts"
    )
    late = [at for at in attempts if at > began + OUTAGE_SECONDS / 2]
    per_second = len(late) / (OUTAGE_SECONDS / 2)
    figures.check("late attempts", per_second <= 1, f"{per_second:.1f}/s")
    first = {run.job_id: run.started for run in reversed(runs)}
    others = [one for one in scene.publishing.published if one.job_id in first and one.job_id not in storm]
    before = [first[one.job_id] - one.at for one in others if calm <= one.at < began]
    meanwhile = [first[one.job_id] - one.at for one in others if began <= one.at < healed]
    p50, p99 = _quantile(meanwhile, 0.5), _quantile(meanwhile, 0.99)
    figures.check(
        "others wait", p50 < 0.5 and p99 < OTHERS_WAIT_SECONDS,
        f"p50 {p50:.2f} s, p99 {p99:.2f} s; {_quantile(before, 0.99):.2f} s before", "jobs of other types waited",
    )  # fmt: skip
    return figures


def _await_calm(scene: Scene) -> None:
    """Wait until nothing is left of what was published while the workers started."""
    scene.wait_for_ends(200)

    def caught_up() -> bool:
        published = {one.job_id for one in list(scene.publishing.published)}
        return len(published - scene.listener.ended) < 10

    wait_until(caught_up, 60, "the workers have caught up")


def _quantile(waits: Iterable[float], share: float) -> float:
    found = sorted(waits)
    return found[int(len(found) * share)]


def _cpu_seconds(members: Sequence[Member]) -> float:
    times = [psutil.Process(member.pid).cpu_times() for member in members]
    return sum(one.user + one.system for one in times)


def _storm(scene: Scene) -> set[str]:
    storm: list[Published] = []
    payload = scene.publishing.payload
    for start in range(0, STORM_JOBS, 500):
        deeds = [payload(Quick, number=start + n, work_ms=2, how="downstream") for n in range(500)]
        storm += scene.publishing.publish(deeds)
    return {one.job_id for one in storm}


@fault("broker-disk-full", seconds=65)
def broker_disk_full(scene: Scene, seed: random.Random) -> Figures:
    """No file of the broker may grow, as on a full disk: it halts, and halts when it starts; then there is space."""
    figures = Figures()
    scene.publishing.steadily(60)
    members = scene.workers(2)
    pids = [member.pid for member in members]
    scene.wait_for_ends(150)
    service = scene.stack.service("kafka")
    broker = service.runner
    assert isinstance(broker, Process), "the broker of a container is not hurt like this"
    with scene.incident("broker disk full", repeats=False):
        _no_space(broker)
        wait_until(lambda: not service.running, 40, "the broker halts")
        scene.play(seed.uniform(1, 6))
        broker.start()
        _no_space(broker)
        wait_until(lambda: not service.running, 40, "the broker halts when it starts")
        scene.play(seed.uniform(1, 6))
    service.start(within=timedelta(minutes=2))  # every log is recovered
    scene.recover(8, 60)
    same = [member.alive and member.pid == pid for member, pid in zip(members, pids, strict=True)]
    figures.check("workers live", all(same), pids, "a worker ended")
    return figures


def _no_space(broker: Process) -> None:
    """Let no file of the broker grow; its limit ends with its process."""
    hard = psutil.Process(broker.pid).rlimit(resource.RLIMIT_FSIZE)[1]
    psutil.Process(broker.pid).rlimit(resource.RLIMIT_FSIZE, (4096, hard))


QUICK_JOBS = 6_000
SLOW_EVERY = 200
MOST_READ_AGAIN, MOST_RUN_AGAIN = 300, 150
"""The most of them that one crash may make a worker ask the ledger about again, and run again."""


@fault("slow-among-quick", seconds=60)
def slow_among_quick(scene: Scene, seed: random.Random) -> Figures:
    """0.5 % of the jobs take 4 s, the others 25 ms, and a kill -9 in the middle: few are read again."""
    figures = Figures()
    payload = scene.publishing.payload
    slow = seed.randrange(SLOW_EVERY)
    naps = [4_000 if n % SLOW_EVERY == slow else 25 for n in range(QUICK_JOBS)]
    for start in range(0, QUICK_JOBS, 500):
        scene.publishing.publish([payload(Quick, work_ms=ms) for ms in naps[start : start + 500]])
    member = scene.worker()
    scene.wait_for_ends(QUICK_JOBS // 2, 90)
    member.kill()
    told = sum(end for _, end in ranges_of(scene.settings.kafka, LIFECYCLE_TOPIC).values())
    wait_until(lambda: scene.listener.read() >= told, 20, "all that it told is heard")
    ended = set(scene.listener.ended)
    above = read_again = 0
    known = {
        place: (commits[-1].position, settled_beyond(commits[-1].position, commits[-1].metadata))
        for place, commits in scene.commits()["streams-primary"].places.items()
    }
    for record in scene.pipeline.records(WEBHOOKS.topic):
        position, beyond = known.get((record.topic, record.partition), (0, set()))
        if record.offset >= position and record.headers["ce_id"].decode() in ended:
            above += 1
            read_again += record.offset not in beyond
    member.start()
    scene.heal()
    scene.drain(60)
    runs = Counter(run.job_id for run in executions(scene.effects / "ledger"))
    run_again = runs.total() - len(runs)
    figures.check(
        "read again", read_again <= MOST_READ_AGAIN,
        f"{read_again} of at most {MOST_READ_AGAIN}, of {above} above the positions, of {len(ended)} ended",
    )  # fmt: skip
    figures.check("run again", run_again <= MOST_RUN_AGAIN, run_again)
    return figures
