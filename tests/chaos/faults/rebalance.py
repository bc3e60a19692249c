"""Faults of the group: workers join and leave all the time, freeze while others wait for them, or hand over slowly."""

import random
import signal
import time
from collections import Counter

from streams.jobs import Payload
from tests.chaos.commits import commits_of
from tests.chaos.crew import Member
from tests.chaos.faults import Figures, fault
from tests.chaos.faults.broker import PRIMARY, committed_again, long_jobs, ran_once
from tests.chaos.handlers import Quick, Threaded
from tests.chaos.history import Published
from tests.chaos.publishing import everyday
from tests.chaos.scene import Scene
from tests.processes import wait_until

CHANGE_EVERY_SECONDS = 2.0
STORM_SECONDS = 120
FEWEST, MOST = 3, 5
LEAVES_WITHIN_SECONDS = 20.0
"""Far more than the scene's grace: it is a busy machine. One that stays on keeps the whole group waiting."""
SPAN_SECONDS = 10
"""In each such part of a storm something must have ended."""


def stormy(number: int, chance: random.Random, secret: str) -> Payload:
    """Return a job as on every day, but some take longer than a worker has to hand over."""
    if chance.random() < 0.01:
        kind = chance.choice([Quick, Threaded])
        return kind(number=number, work_ms=chance.choice([1_500, 4_000]), password=secret)
    return everyday(number, chance, secret)


class Coming:
    """Workers that join and leave, at least `FEWEST` of them there at any time."""

    def __init__(self, scene: Scene, seed: random.Random, members: list[Member]) -> None:
        self._scene = scene
        self._seed = seed
        self._members = members
        self._leaving: list[tuple[Member, float]] = []
        self.changes = 0
        self.codes: Counter[int] = Counter()
        """How those ended that were asked to leave; one that had hardly begun is ended by the signal."""
        self.slowest_s = 0.0

    def change(self) -> None:
        """Let one worker join or leave; one in four that leave is killed."""
        self.see_off()
        there = self._scene.crew.alive
        joins = len(there) <= FEWEST or (len(there) < MOST and self._seed.random() < 0.5)
        if joins:
            self._join()
        else:
            victim = self._seed.choice(there)
            if self._seed.random() < 0.25:
                victim.kill()
            else:
                self._leaving.append((victim, victim.ask_to_leave()))
        self.changes += 1

    def _join(self) -> None:
        gone = [one for one in self._members if one.worker.process.poll() is not None]
        if gone:
            self._seed.choice(gone).start()
        else:
            self._members.append(self._scene.worker())

    def see_off(self) -> bool:
        """Say who has left; returns whether all have that were asked to."""
        for member, begin in list(self._leaving):
            code = member.worker.process.poll()
            if code is not None:
                member.left(begin)
                self.codes[code] += 1
                self.slowest_s = max(self.slowest_s, time.time() - begin)
                self._leaving.remove((member, begin))
        return not self._leaving


@fault("rebalance-storm", seconds=200)
def rebalance_storm(scene: Scene, seed: random.Random) -> Figures:
    """A worker joins or leaves every 2 s for 2 min, three to five of them, under load."""
    figures = Figures()
    scene.publishing.steadily(100, stormy)
    # A third worker may get no partition of a topic with four, so nobody waits for it to run something.
    coming = Coming(scene, seed, [*scene.workers(2), scene.worker()])
    scene.wait_for_ends(150)
    before = sum(scene.committed().values())
    generations = commits_of(PRIMARY, scene.settings.kafka).generations
    began = time.time()
    while time.time() < began + STORM_SECONDS:
        coming.change()
        scene.play(CHANGE_EVERY_SECONDS)
    over = time.time()
    wait_until(coming.see_off, 40, "all have left that were asked to")
    scene.recover(5, 60)
    ends = _ends_per_span(scene, began, over)
    figures.note("changes", coming.changes)
    figures.check("exit codes", set(coming.codes) <= {0, -signal.SIGTERM}, dict(coming.codes))
    slowest = f"{coming.slowest_s:.1f} s"
    figures.check(
        "leaves within", coming.slowest_s < LEAVES_WITHIN_SECONDS, slowest, "a worker did not leave"
    )
    figures.check("goes on all the time", min(ends) > 0, ends, "nothing ended for a while")
    committed_again(scene, figures, before)
    rebalances = commits_of(PRIMARY, scene.settings.kafka).generations - generations
    # Who comes or goes while members find together is part of the same rebalance.
    figures.check("rebalances", rebalances >= coming.changes // 5, rebalances, "that was no storm")
    return figures


def _ends_per_span(scene: Scene, began: float, over: float) -> list[int]:
    per_second = scene.listener.ends_per_second
    return [
        sum(per_second[second] for second in range(start, start + SPAN_SECONDS))
        for start in range(int(began), int(over) - SPAN_SECONDS + 1, SPAN_SECONDS)
    ]


@fault("frozen-during-rebalance", seconds=90)
def frozen_during_rebalance(scene: Scene, seed: random.Random) -> Figures:
    """SIGSTOP of a worker while others wait for it in a rebalance; it comes back within its session, or later."""
    figures = Figures()
    scene.publishing.steadily(60, stormy)
    members = scene.workers(2)
    scene.wait_for_ends(100)
    before = sum(scene.committed().values())
    for seconds in (3.0, 12.0):
        long_jobs(scene, 8, 3_000)  # handing over takes a while
        joining = scene.worker()
        wait_until(scene.pipeline.rebalances, 30, "a rebalance has begun")
        victim = seed.choice(members)
        victim.freeze()
        scene.play(seconds)
        victim.thaw()
        members.append(joining)
        wait_until(lambda: scene.pipeline.members() > 0, 30, "the rebalance is over")
        scene.play(2)
    scene.recover(5, 45)
    committed_again(scene, figures, before)
    figures.check("workers live", all(one.alive for one in members), len(members))
    return figures


@fault("slow-hand-over", seconds=70)
def slow_hand_over(scene: Scene, seed: random.Random) -> Figures:
    """A guest joins and leaves while its host takes longer to hand over than a session lasts: jobs run once."""
    figures = Figures()
    scene.publishing.steadily(60, stormy)
    scene.workers(1, REVOKE_GRACE="9s")
    scene.wait_for_ends(100)
    before = sum(scene.committed().values())
    jobs: list[Published] = []
    for _ in range(2):
        jobs += long_jobs(scene, 8, 7_000)
        guest = scene.worker(keep=False)
        scene.await_runs({guest.pid}, 90)
        scene.play(seed.uniform(0, 3))
        guest.terminate()
    scene.recover(5, 45)
    committed_again(scene, figures, before)
    ran_once(scene, figures, jobs)
    return figures


@fault("late-resume", seconds=65)
def late_resume(scene: Scene, seed: random.Random) -> Figures:
    """Workers take a second to resume after they were given partitions, also those that had none before."""
    figures = Figures()
    scene.publishing.steadily(60, stormy)
    modules = "tests.chaos.handlers,tests.chaos.late"
    scene.workers(2, HANDLER_MODULES=modules)
    scene.wait_for_ends(100)
    before = sum(scene.committed().values())
    for _ in range(2):  # of four partitions, the first to join gets none, and one when the second one joins
        scene.worker(HANDLER_MODULES=modules)
        wait_until(scene.pipeline.rebalances, 30, "a rebalance has begun")
        wait_until(lambda: scene.pipeline.members() > 0, 30, "the rebalance is over")
        scene.play(seed.uniform(2, 4))
    scene.recover(5, 30)
    committed_again(scene, figures, before)
    return figures
