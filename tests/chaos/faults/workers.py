"""Faults of workers: they die, wherever they are; they freeze; their handlers do what handlers must not."""

import random

from tests.chaos.faults import Figures, fault
from tests.chaos.scene import Scene


@fault("kill-worker", seconds=35, ci=True)
def kill_worker(scene: Scene, seed: random.Random) -> Figures:
    """kill -9 of one of two workers at random moments, four times, under a steady load."""
    figures = Figures()
    scene.publishing.steadily(80)
    members = scene.workers(2)
    scene.wait_for_ends(150)
    for _ in range(4):
        scene.play(seed.uniform(1, 4))
        victim = seed.choice(members)
        victim.kill()
        scene.play(seed.uniform(0, 1))
        victim.start()
    scene.heal()
    scene.play(6)
    scene.drain(40)
    figures.note("kills", 4)
    return figures
