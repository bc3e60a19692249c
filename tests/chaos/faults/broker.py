"""Faults of the broker, and of the network before it: it dies, freezes, answers late, or into the void.

No worker is hurt and the ledger is there all the time, so none of this is a reason for a job to run twice.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from streams.client import SyncJobs
from streams.errors import NotAccepted
from streams.publication import Publication
from streams.retry import GROUP as FORWARDER
from tests.chaos.collect import executions, records
from tests.chaos.commits import commits_of
from tests.chaos.crew import Member
from tests.chaos.faults import Figures, fault
from tests.chaos.handlers import Quick, Threaded
from tests.chaos.history import Incident, Published
from tests.chaos.proxy import Proxy
from tests.chaos.scene import Scene
from tests.processes import wait_until

PRIMARY = "streams-primary"
BEYOND_SESSION_SECONDS = 14.0
"""More than twice the session of the scene's workers."""


def afterwards(scene: Scene, figures: Figures, drain_seconds: float = 45) -> None:
    """Heal, let some load pass, drain, and judge every commit there was."""
    before = sum(scene.committed().values())
    scene.recover(6, drain_seconds)
    committed_again(scene, figures, before)


def committed_again(scene: Scene, figures: Figures, before: int) -> None:
    """Check that positions went on after the heal, and that none of them ever went back."""
    commits = commits_of(PRIMARY, scene.settings.kafka)
    back = commits.steps_back() + commits_of(FORWARDER, scene.settings.kafka).steps_back()
    figures.note("generations", commits.generations)
    further = sum(scene.committed().values()) - before
    figures.check(
        "positions go on", further > 0, f"{further} further", "nothing was committed after the heal"
    )
    figures.check("commits", not back, f"{commits.count}", f"{len(back)} went back, such as {back[:1]}")


def all_stayed(scene: Scene, figures: Figures) -> None:
    """Check that no worker took the fault for a reason to end."""
    ends = [one for one in scene.crew.incidents if one.what.startswith("ended")]
    figures.check("workers stay", not ends, f"{len(ends)} ended", f"{len(ends)} workers ended: {ends[:1]}")


def runs_of(scene: Scene, jobs: list[Published]) -> list[int]:
    """Return how often each of some jobs ran."""
    count = Counter(run.job_id for run in executions(scene.effects / "ledger"))
    return [count[job.job_id] for job in jobs]


def long_jobs(scene: Scene, count: int, work_ms: int) -> list[Published]:
    """Publish jobs, half of them in the loop and half in threads, and wait until all of them run."""
    payload = scene.publishing.payload
    kinds = [Quick, Threaded]
    jobs = scene.publishing.publish([payload(kinds[n % 2], work_ms=work_ms) for n in range(count)])
    wait_until(lambda: all(runs_of(scene, jobs)), 40, "the long jobs run")
    return jobs


def ran_once(scene: Scene, figures: Figures, jobs: list[Published]) -> None:
    """Check that long jobs ran once, whoever had their partitions meanwhile."""
    runs = runs_of(scene, jobs)
    figures.check("long jobs run once", set(runs) == {1}, runs)


@contextmanager
def incident(scene: Scene, what: str, victim: Member | None = None) -> Iterator[None]:
    """Say that something is done to the broker, or to one worker's way to it; no job may run again for it."""
    begin = time.time()
    try:
        yield
    finally:
        pid = None if victim is None else victim.pid
        scene.crew.incidents.append(Incident(what, begin, time.time(), pid, repeats=False))


# -- the broker ------------------------------------------------------------------------------------------


@fault("broker-killed", seconds=90)
def broker_killed(scene: Scene, seed: random.Random) -> Figures:
    """kill -9 of the broker and a start, twice, while jobs run."""
    figures = Figures()
    scene.under_load()
    kafka = scene.stack.service("kafka")
    for _ in range(2):
        jobs = long_jobs(scene, 6, 4_000)
        with incident(scene, "broker killed"):
            kafka.kill()
            scene.play(seed.uniform(0, 3))
            kafka.start()
        scene.play(seed.uniform(2, 4))
        ran_once(scene, figures, jobs)
    all_stayed(scene, figures)
    afterwards(scene, figures)
    return figures


@fault("broker-restarted", seconds=65)
def broker_restarted(scene: Scene, seed: random.Random) -> Figures:
    """The broker is stopped as an operator does it, is away for longer than sessions, and starts again."""
    figures = Figures()
    scene.under_load()
    jobs = long_jobs(scene, 6, 12_000)
    kafka = scene.stack.service("kafka")
    with incident(scene, "broker restarted"):
        kafka.stop()
        scene.play(seed.uniform(5, 10))
        kafka.start()
    scene.play(4)
    all_stayed(scene, figures)
    afterwards(scene, figures)
    ran_once(scene, figures, jobs)
    return figures


@fault("broker-frozen", seconds=65)
def broker_frozen(scene: Scene, seed: random.Random) -> Figures:
    """SIGSTOP of the broker for 30 s: connections stay, nothing answers, then all that was sent is dealt with."""
    figures = Figures()
    scene.under_load()
    jobs = long_jobs(scene, 6, 10_000)
    with incident(scene, "broker frozen"):
        scene.pause("kafka")
        scene.play(30)
        scene.stack.service("kafka").resume()
    afterwards(scene, figures)
    all_stayed(scene, figures)
    ran_once(scene, figures, jobs)
    return figures


# -- the network -----------------------------------------------------------------------------------------


def _behind_proxy(scene: Scene, per_second: float = 80) -> Proxy:
    proxy = scene.proxy("kafka")
    scene.under_load(per_second)
    return proxy


@fault("kafka-half-open", seconds=55)
def kafka_half_open(scene: Scene, seed: random.Random) -> Figures:
    """The workers' connections to the broker stay open and nothing passes, for twice a session."""
    figures = Figures()
    proxy = _behind_proxy(scene)
    jobs = long_jobs(scene, 6, 6_000)
    with incident(scene, "kafka half-open"):
        proxy.drop()
        scene.play(BEYOND_SESSION_SECONDS)
    afterwards(scene, figures)
    all_stayed(scene, figures)
    ran_once(scene, figures, jobs)
    return figures


@fault("kafka-cut-off", seconds=70)
def kafka_cut_off(scene: Scene, seed: random.Random) -> Figures:
    """One of two workers loses the broker and keeps the ledger: the other takes over, and repeats nothing."""
    figures = Figures()
    scene.publishing.steadily(60)
    free = scene.worker()
    proxy = scene.proxy("kafka")
    cut = scene.worker()
    scene.await_runs({free.pid, cut.pid})
    scene.wait_for_ends(100)
    jobs = long_jobs(scene, 8, 6_000)
    for _ in range(2):
        with incident(scene, "cut off", cut):
            proxy.drop()
            scene.play(BEYOND_SESSION_SECONDS)
        proxy.heal()
        scene.play(seed.uniform(2, 5))
    afterwards(scene, figures)
    all_stayed(scene, figures)
    ran_once(scene, figures, jobs)
    return figures


@fault("kafka-lossy", seconds=60)
def kafka_lossy(scene: Scene, seed: random.Random) -> Figures:
    """Connections to the broker break at random, each about once a second, for 15 s."""
    figures = Figures()
    proxy = _behind_proxy(scene)
    with incident(scene, "kafka lossy"):
        proxy.lossy(0.9)
        scene.play(15)
    afterwards(scene, figures)
    all_stayed(scene, figures)
    return figures


@fault("kafka-answers-lost", seconds=60)
def kafka_answers_lost(scene: Scene, seed: random.Random) -> Figures:
    """The broker does what workers ask and its answers get lost: records are written unheard."""
    figures = Figures()
    proxy = _behind_proxy(scene)
    for _ in range(3):
        with incident(scene, "answers of kafka lost"):
            proxy.swallow_answers()
            scene.play(seed.uniform(1, 8))
        proxy.heal()
        scene.play(3)
    afterwards(scene, figures)
    all_stayed(scene, figures)
    return figures


@fault("kafka-throttled", seconds=65)
def kafka_throttled(scene: Scene, seed: random.Random) -> Figures:
    """No more than 8 KB/s pass between a worker and the broker on each connection, for 20 s."""
    figures = Figures()
    proxy = _behind_proxy(scene)
    with incident(scene, "kafka throttled"):
        proxy.throttle(8_000)
        scene.play(20)
    afterwards(scene, figures)
    all_stayed(scene, figures)
    return figures


@fault("session-lost", seconds=55)
def session_lost(scene: Scene, seed: random.Random) -> Figures:
    """The broker's answers take longer than sessions last, while jobs run for longer still: each runs once."""
    figures = Figures()
    proxy = _behind_proxy(scene, 40)
    jobs = long_jobs(scene, 8, 24_000)
    generations = commits_of(PRIMARY, scene.settings.kafka).generations
    with incident(scene, "kafka slow beyond the session"):
        proxy.slow(BEYOND_SESSION_SECONDS)
        scene.play(20)
    afterwards(scene, figures, 60)
    all_stayed(scene, figures)
    ran_once(scene, figures, jobs)
    lost = commits_of(PRIMARY, scene.settings.kafka).generations - generations
    figures.check("sessions lost", lost > 0, f"{lost} rebalances", "no session was lost: nothing was tried")
    return figures


# -- the publisher's -------------------------------------------------------------------------------------


@fault("publish-answer-lost", seconds=50)
def publish_answer_lost(scene: Scene, seed: random.Random) -> Figures:
    """Jobs are written and their publisher never hears; published again under their keys, each has one effect."""
    figures = Figures()
    scene.under_load(40)
    proxy = scene.proxy("kafka")  # the workers have started, and go past it
    settings = scene.settings.model_copy(
        update={
            "kafka_bootstrap_servers": f"127.0.0.1:{proxy.port}",
            "publish_timeout": timedelta(seconds=2),
        }
    )
    unheard: list[Published] = []
    with SyncJobs(settings) as jobs:
        turn = 0
        # The client may write a batch again, whose answer it missed, as the one that the broker has already.
        while turn < 4 or (turn < 12 and not _written_twice(scene, unheard)):
            turn += 1
            _until_accepted(scene, jobs, [_publication(scene, f"heard-{turn}")])
            wanted = [_publication(scene, f"unheard-{turn}-{number}") for number in range(50)]
            with incident(scene, "answers to the publisher lost"):
                proxy.swallow_answers()
                heard = _heard(jobs, wanted)
            proxy.heal()
            assert not heard, "answers came through"
            unheard += _until_accepted(scene, jobs, wanted)
    afterwards(scene, figures)
    twice = _written_twice(scene, unheard)
    runs = Counter(runs_of(scene, unheard))
    figures.check("written twice", twice > 0, f"{twice} of {len(unheard)}", "nothing was written twice")
    figures.check("each runs once", set(runs) == {1}, dict(runs))
    return figures


def _written_twice(scene: Scene, jobs: Sequence[Published]) -> int:
    copies = Counter(
        one.headers.get("ce_id", b"").decode()
        for one in records(scene.settings.kafka, scene.settings.kafka_partitions)
        if one.topic == "jobs.webhooks"
    )
    return sum(copies[one.job_id] > 1 for one in jobs)


def _publication(scene: Scene, key: str) -> Publication:
    return Publication(scene.publishing.payload(Quick, work_ms=5), "org-unheard", idempotency_key=key)


def _heard(jobs: SyncJobs, wanted: list[Publication]) -> list[str]:
    try:
        return jobs.publish_many(wanted)
    except NotAccepted as error:
        return list(error.accepted)


def _until_accepted(scene: Scene, jobs: SyncJobs, wanted: list[Publication]) -> list[Published]:
    """Publish again and again, as a careful producer does, and remember what was acknowledged."""
    deadline = time.monotonic() + 40
    while True:
        try:
            ids = jobs.publish_many(wanted)
            break
        except NotAccepted:
            if time.monotonic() > deadline:
                raise
    accepted = [
        Published(job_id, one.organization_id, str(one.idempotency_key), time.time())
        for one, job_id in zip(wanted, ids, strict=True)
    ]
    scene.publishing.published += accepted
    return accepted
