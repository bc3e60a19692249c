"""Faults of workers: they die, wherever they are; they freeze; their handlers do what handlers must not."""

import random
import subprocess
import time

import psutil

from streams.quarantine import CRASH_LIMIT
from tests.chaos import failpoints
from tests.chaos.collect import executions
from tests.chaos.faults import Figures, fault
from tests.chaos.handlers import Apart, Deed, Quick, Threaded
from tests.chaos.history import Published
from tests.chaos.scene import Scene
from tests.processes import wait_until

LONG_SECONDS = 9.0
"""Longer than any lease, session or grace of the scene."""

HANDED_ON_SECONDS = 15.0
"""Longer than a worker that was asked to leave takes, however late: a thread that ends meanwhile ends for nothing."""


def _started(scene: Scene, jobs: list[Published], within_seconds: float = 40) -> None:
    """Wait until all of some jobs have started."""
    wanted = {job.job_id for job in jobs}
    ledger = scene.effects / "ledger"
    wait_until(
        lambda: wanted <= {run.job_id for run in executions(ledger)}, within_seconds, "the jobs have started"
    )


def _runs_of(scene: Scene, jobs: list[Published]) -> list[int]:
    runs = executions(scene.effects / "ledger")
    return [sum(run.job_id == job.job_id for run in runs) for job in jobs]


def _publish(scene: Scene, count: int, kind: type[Deed], **fields: object) -> list[Published]:
    return scene.publishing.publish([scene.publishing.payload(kind, **fields) for _ in range(count)])


@fault("kill-worker", seconds=60, ci=True)
def kill_worker(scene: Scene, seed: random.Random) -> Figures:
    """kill -9 of one of two workers at random moments, four times."""
    members = scene.under_load(80, ends=150)
    for _ in range(4):
        scene.play(seed.uniform(1, 4))
        victim = seed.choice(members)
        victim.kill()
        scene.play(seed.uniform(0, 1))
        victim.start()
    scene.recover(5, 40)
    return Figures()


def _failpoint(name: str, every: int, *, ci: bool = False) -> None:
    times = 3

    def act(scene: Scene, seed: random.Random) -> Figures:
        figures = Figures()
        scene.publishing.steadily(80)
        scene.workers(2, FAILPOINT=f"{name}:{every + seed.randrange(every)}:{times}")
        deaths = scene.effects / f"failpoint-{times - 1}"
        wait_until(deaths.exists, 60, f"{times} workers died {name}")
        scene.play(2)
        scene.recover(4, 40)
        figures.check("deaths", len(scene.crew.incidents) == times, len(scene.crew.incidents))
        return figures

    act.__doc__ = f"kill -9 by itself at the failpoint {name}, three times."
    fault(f"failpoint-{name}", seconds=40, ci=ci)(act)


for _name, _every in zip(failpoints.NAMES, (150, 150, 8, 40, 40), strict=True):
    _failpoint(_name, _every, ci=_name == "after-settle")


def _kills_its_worker(scene: Scene, kind: type[Deed], how: str, *, neighbour_ms: int = 1_500) -> Figures:
    figures = Figures()
    scene.publishing.steadily(20)
    members = scene.workers(2, KAFKA_SESSION_TIMEOUT="3s")
    scene.wait_for_ends(20)
    killers = _publish(scene, 1, kind, how=how)
    neighbours = _publish(scene, 5, Quick, work_ms=neighbour_ms)
    scene.wait_for_end_of([job.job_id for job in killers + neighbours], 120)
    scene.recover(3, 40)
    (runs,) = _runs_of(scene, killers)
    figures.check(
        "crash deliveries", runs == CRASH_LIMIT, runs, f"dead after {runs} of {CRASH_LIMIT} crashes"
    )
    figures.check("workers", all(member.alive for member in members), f"{len(scene.crew.incidents)} deaths")
    return figures


@fault("job-exits-worker", seconds=50)
def job_exits_worker(scene: Scene, seed: random.Random) -> Figures:
    """A job in the loop ends its worker's process; it is dead after five workers, its neighbours are unharmed."""
    return _kills_its_worker(scene, Quick, "exit")


@fault("job-segfaults-worker", seconds=55)
def job_segfaults_worker(scene: Scene, seed: random.Random) -> Figures:
    """A job in a thread reads address 0; it is dead after five workers, its neighbours are unharmed."""
    return _kills_its_worker(scene, Threaded, "segfault")


@fault("job-exits-beside-long-jobs", seconds=60)
def job_exits_beside_long_jobs(scene: Scene, seed: random.Random) -> Figures:
    """The same beside jobs that run for longer than it takes to die again: nobody may think that they did it."""
    return _kills_its_worker(scene, Quick, "exit", neighbour_ms=12_000)


@fault("job-out-of-memory", seconds=40)
def job_out_of_memory(scene: Scene, seed: random.Random) -> Figures:
    """A process handler is killed as the kernel does; its job is dead, the worker and other processes go on."""
    figures = Figures()
    scene.publishing.steadily(30)
    (member,) = scene.workers(1)
    pid = member.pid
    killers = _publish(scene, 2, Apart, how="kill_process")
    fine = _publish(scene, 8, Apart, work_ms=50)
    scene.wait_for_end_of([job.job_id for job in killers + fine])
    scene.recover(3, 30)
    figures.check("worker lives", member.alive and member.pid == pid, pid)
    figures.check("attempts", _runs_of(scene, killers) == [2, 2], _runs_of(scene, killers))
    return figures


@fault("sigterm", seconds=35, ci=True)
def sigterm(scene: Scene, seed: random.Random) -> Figures:
    """SIGTERM amid short and long jobs: short ones end and are not run again, long ones are handed on."""
    return _sigterm(scene, again=False)


@fault("sigterm-twice", seconds=55)
def sigterm_twice(scene: Scene, seed: random.Random) -> Figures:
    """A second SIGTERM a second after the first one."""
    return _sigterm(scene, again=True)


def _sigterm(scene: Scene, *, again: bool) -> Figures:
    figures = Figures()
    scene.publishing.steadily(60)
    (member,) = scene.workers(1, SHUTDOWN_GRACE="3s")
    long = [
        *_publish(scene, 2, Quick, work_ms=int(HANDED_ON_SECONDS * 1000)),
        *_publish(scene, 2, Threaded, work_ms=int(HANDED_ON_SECONDS * 1000)),
        *_publish(scene, 1, Apart, work_ms=3_900),
    ]
    _started(scene, long)
    begin = member.ask_to_leave()
    if again:
        scene.play(1)
        member.worker.process.terminate()
    try:
        code = member.worker.wait(20)
    except subprocess.TimeoutExpired:
        code = -1
    member.left(begin)
    took = time.time() - begin
    figures.check("exit code", code == 0, code)
    figures.check("left within", took < 10, f"{took:.1f} s")
    scene.worker()
    scene.recover(5, 40)
    runs = _runs_of(scene, long)
    figures.check("long jobs handed on", all(count == 2 for count in runs[:4]), runs)
    return figures


@fault("zombie-worker", seconds=40, ci=True)
def zombie_worker(scene: Scene, seed: random.Random) -> Figures:
    """SIGSTOP of a worker beyond its session and its leases, and back: it neither commits nor overwrites."""
    figures = Figures()
    members = scene.under_load(60, ends=100)
    # On all partitions, so that both workers run some when one of them freezes.
    long = [*_publish(scene, 8, Quick, work_ms=4_000), *_publish(scene, 4, Threaded, work_ms=4_000)]
    _started(scene, long)
    victim = seed.choice(members)
    held = [
        run for run in executions(scene.effects / "ledger") if run.ended is None and run.pid == victim.pid
    ]
    victim.freeze()
    scene.play(12)
    scene.recover(6, 40)
    figures.note("in flight when frozen", len(held))
    figures.check("worker lives", victim.alive, victim.pid)
    return figures


@fault("handler-longer-than-any-poll", seconds=35)
def handler_longer_than_any_poll(scene: Scene, seed: random.Random) -> Figures:
    """Handlers that run for longer than the session and five leases: once, while all others go on."""
    figures = Figures()
    scene.publishing.steadily(60)
    scene.workers(2)
    long = [*_publish(scene, 3, Quick, work_ms=16_000), *_publish(scene, 3, Threaded, work_ms=16_000)]
    _started(scene, long)
    scene.heal()
    scene.wait_for_end_of([job.job_id for job in long])
    scene.drain(30)
    runs = _runs_of(scene, long)
    figures.check("runs", runs == [1] * len(long), runs)
    return figures


@fault("handler-blocks-the-loop", seconds=50)
def handler_blocks_the_loop(scene: Scene, seed: random.Random) -> Figures:
    """A handler sleeps in its worker's loop for longer than session and lease; the other worker goes on."""
    figures = Figures()
    scene.under_load(60, ends=60)
    (blocker,) = _publish(scene, 1, Quick, how="block_loop", work_ms=int(LONG_SECONDS * 1000))
    _started(scene, [blocker])
    before = len(scene.listener.ended)
    scene.play(LONG_SECONDS - 2)
    figures.check("others go on", len(scene.listener.ended) - before > 50, len(scene.listener.ended) - before)
    scene.wait_for_end_of([blocker.job_id], 30)
    scene.recover(3, 40)
    return figures


@fault("handler-never-returns", seconds=30)
def handler_never_returns(scene: Scene, seed: random.Random) -> Figures:
    """Process handlers that never return, more than there are processes: killed at their timeout, slots freed."""
    figures = Figures()
    scene.publishing.steadily(30)
    (member,) = scene.workers(1)
    endless = _publish(scene, 3, Apart, how="never")
    _started(scene, endless[:2])
    fine = _publish(scene, 6, Apart, work_ms=50)
    scene.wait_for_end_of([job.job_id for job in endless + fine])
    scene.recover(3, 30)
    figures.check("attempts", _runs_of(scene, endless) == [2, 2, 2], _runs_of(scene, endless))
    left = [one for one in psutil.Process(member.pid).children(recursive=True) if one.num_threads() > 0]
    # The processes, the server that forks them, and its resource tracker.
    figures.check("processes", len(left) <= 2 + 2, len(left))
    return figures


def _clock_skew(hours: int) -> None:
    def act(scene: Scene, seed: random.Random) -> Figures:
        scene.publishing.steadily(60)
        modules = "tests.chaos.handlers,tests.chaos.skew"
        scene.worker(HANDLER_MODULES=modules, CLOCK_SKEW_SECONDS=str(hours * 3600))
        scene.workers(1)
        scene.wait_for_ends(200)
        scene.play(4)
        scene.recover(4, 30)
        return Figures()

    act.__doc__ = f"The clock of one of two workers is {abs(hours)} h {'ahead' if hours > 0 else 'behind'}."
    fault(f"clock-{'ahead' if hours > 0 else 'behind'}", seconds=35)(act)


_clock_skew(1)
_clock_skew(-1)
