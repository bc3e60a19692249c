"""Many worlds, none of which violates an invariant; each the same whenever and wherever it is run."""

import asyncio
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.loop import PROCESS, Loop, Process, Stalled
from tests.simulation.plan import WEIGHTS, plan_of
from tests.simulation.run import reports, told
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
SEEDS = int(os.environ.get("SIMULATION_SEEDS", "1000"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))


def test_no_seed_violates_an_invariant() -> None:
    failed = [told(report) for report in reports(FIRST, SEEDS) if report.violations]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_replays_exactly_in_another_process(seed: int) -> None:
    digests = [replayed(seed, hash_seed) for hash_seed in ("0", "1")]
    assert digests[0] == digests[1]


def replayed(seed: int, hash_seed: str) -> str:
    """Return the digest of a world's whole story, run in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed)],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    (digest,) = re.findall(r"digest ([0-9a-f]{64})$", told.stdout)
    return str(digest)


def test_seeds_differ() -> None:
    assert World(plan_of(1)).run().digest != World(plan_of(2)).run().digest


def test_the_worlds_have_every_fault_and_what_it_leads_to() -> None:
    seen: Counter[str] = Counter()
    for seed in range(80):
        world = World(plan_of(seed), keep_trace=True)
        report = world.run()
        seen.update(fault.kind for fault in world.plan.faults)
        story = "\n".join(report.trace)
        seen["refused commits"] += story.count(" refused\n")
        seen["cancelled runs"] += sum(one.how == "cancelled" for one in world.executions)
        seen["lost leases"] += sum(one.took_over is not None for one in world.redis.grants)
        seen["records read twice"] += sum(
            one.copies > 1 for log in world.broker.logs.values() for one in log.records
        )
        seen["dead letters"] += len(re.findall(r"append jobs\.[a-z]+\.dlt", story))
        seen["deaths between two steps"] += sum(
            one.process.died_at is not None and not one.ended for one in world.members
        )
    outcomes = (
        "refused commits", "cancelled runs", "lost leases", "records read twice", "dead letters",
        "deaths between two steps",
    )  # fmt: skip
    missing = [what for what in (*WEIGHTS, *outcomes) if not seen[what]]
    assert not missing, seen


class TestLoop:
    def loop(self) -> Loop:
        return Loop(random.Random(1), shuffled=False)  # type: ignore[abstract]

    def test_time_jumps_to_what_happens_next(self) -> None:
        loop = self.loop()
        loop.run_until_complete(asyncio.sleep(3600))
        assert loop.time() == 3600
        assert loop.steps < 10
        loop.end([])

    def test_a_killed_process_takes_no_further_step_and_a_stopped_one_takes_it_later(self) -> None:
        loop = self.loop()
        killed, stopped = Process(loop, "killed"), Process(loop, "stopped")
        told: list[tuple[str, float]] = []

        async def tell() -> None:
            try:
                await asyncio.sleep(1)
            finally:
                process = PROCESS.get()
                assert process is not None
                told.append((process.name, loop.time()))

        async def world() -> None:
            killed.spawn(tell())
            stopped.spawn(tell())
            await asyncio.sleep(0.5)
            killed.kill()
            stopped.stop()
            await asyncio.sleep(4.5)
            stopped.go_on()
            await asyncio.sleep(1)

        loop.run_until_complete(world())
        assert told == [("stopped", 5.0)]
        loop.end([killed, stopped])

    def test_a_world_in_which_nothing_happens_any_more_says_so(self) -> None:
        loop = self.loop()

        async def wait() -> None:
            await loop.create_future()

        with pytest.raises(Stalled):
            loop.run_until_complete(wait())
        loop.end([])
