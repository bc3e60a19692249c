"""Faults of tracking: PostgreSQL is away, busy or full, and the sink dies or freezes at the worst moment."""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import run

import psutil
import psycopg2
from psycopg2.extensions import connection
from sqlalchemy import Engine, make_url, text

from streams.queues import LIFECYCLE_TOPIC
from tests.chaos.faults import LONG, Figures, fault
from tests.chaos.handlers import Quick
from tests.chaos.scene import Scene
from tests.processes import wait_until
from tracking.database import open_database
from tracking.store import Store

PER_SECOND = 60
WITH_FAILPOINT = (sys.executable, "-m", "tests.chaos.sink")
SESSION_SECONDS = 15
"""So long the group waits for a sink that died, before another one gets its partitions."""
DISK_MIB = 48


@contextmanager
def hurt(scene: Scene, figures: Figures, what: str) -> Iterator[None]:
    """Do harm to tracking inside; jobs must not care."""
    began, ended = time.monotonic(), len(scene.listener.ended)
    with scene.incident(what, repeats=False):
        yield
    rate = (len(scene.listener.ended) - ended) / (time.monotonic() - began)
    figures.check(
        "jobs go on", rate > PER_SECOND / 2, f"{rate:.0f} of {PER_SECOND} ends/s", "jobs waited for tracking"
    )


def afterwards(scene: Scene, figures: Figures, within_seconds: float = 20) -> None:
    """Heal, hold tracking to a bound for what was told until then, let some load pass, and drain."""
    scene.heal()
    _await_tracking(scene, figures, within_seconds)
    scene.play(4)
    scene.drain(30)


def _await_tracking(scene: Scene, figures: Figures, within_seconds: float) -> None:
    told, began = scene.listener.read(), time.monotonic()
    with _store(scene) as database:
        store = Store(database)
        behind = told - sum(store.positions(LIFECYCLE_TOPIC).values())
        wait_until(
            lambda: sum(store.positions(LIFECYCLE_TOPIC).values()) >= told, 60, "tracking has caught up"
        )
    took = time.monotonic() - began
    figures.check(
        "caught up",
        took < within_seconds,
        f"{max(behind, 0)} events in {took:.1f} s",
        "tracking stayed behind",
    )


@contextmanager
def _store(scene: Scene) -> Iterator[Engine]:
    database = open_database(scene.database_url, application="chaos")
    try:
        yield database
    finally:
        database.dispose()


def _same_sink(scene: Scene, figures: Figures, pid: int) -> None:
    lives = scene.sink.pid == pid and scene.sink.poll() is None
    figures.check("sink lives", lives, pid, "the sink ended")


def _sinks_backends(scene: Scene, what: str) -> int:
    """Return how many of the sink's backends there are of which something is true."""
    name = make_url(scene.database_url).database
    with scene.theatre.server.connect() as server:
        asked = text(
            "select count(*) filter (where answer) from (select"
            f" {what} as answer from pg_stat_activity where datname = :name and application_name = 'streams') as found"
        )
        return int(server.execute(asked, {"name": name}).scalar_one())


TERMINATED = "pg_terminate_backend(pid)"
WAITING = "wait_event_type = 'Lock'"
DEADLOCK = "deadlock detected"


@fault("postgres-down", seconds=95)
def postgres_down(scene: Scene, seed: random.Random) -> Figures:
    """PostgreSQL crashes and stays away for 60 s, or 5 min with CHAOS_LONG; jobs do not notice."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    pid = scene.sink.pid
    with hurt(scene, figures, "postgres down"):
        scene.stack.service("postgres").kill()
        scene.play(300 if LONG else 60)
    _same_sink(scene, figures, pid)
    afterwards(scene, figures)
    return figures


@fault("postgres-half-open", seconds=45)
def postgres_half_open(scene: Scene, seed: random.Random) -> Figures:
    """PostgreSQL does what it is asked and its answers get lost, for 15 s: the sink knows of no commit."""
    figures = Figures()
    proxy = scene.proxy("postgres")
    _stop_sink(scene)
    pid = scene.start_sink().pid
    scene.under_load(PER_SECOND, workers=1, ends=120)
    with hurt(scene, figures, "postgres half-open"):
        proxy.swallow_answers()
        scene.play(15)
    _same_sink(scene, figures, pid)
    afterwards(scene, figures)
    return figures


@fault("postgres-backends-killed", seconds=40)
def postgres_backends_killed(scene: Scene, seed: random.Random) -> Figures:
    """pg_terminate_backend on all that the sink has, again and again, for 12 s."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    pid, killed = scene.sink.pid, 0
    with hurt(scene, figures, "backends killed"):
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            killed += _sinks_backends(scene, TERMINATED)
            scene.play(seed.uniform(0, 0.6))
    figures.check("killed", killed >= 5, killed, "too few to tell")
    _same_sink(scene, figures, pid)
    afterwards(scene, figures)
    return figures


@fault("postgres-deadlock", seconds=25, ci=True)
def postgres_deadlock(scene: Scene, seed: random.Random) -> Figures:
    """Another session locks what the sink writes in the opposite order; the sink is the victim, four times."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    pid = scene.sink.pid
    with hurt(scene, figures, "deadlocks"), _store(scene) as database:
        for _ in range(4):
            _deadlock(scene, database)
    victim = _logged(scene, DEADLOCK)
    figures.check("deadlocks", victim >= 4, victim, "the sink was not the victim each time")
    _same_sink(scene, figures, pid)
    afterwards(scene, figures)
    return figures


def _deadlock(scene: Scene, database: Engine) -> None:
    """Lock the rows of jobs that run; once the sink waits for one, want the positions, which it has locked."""
    told = _logged(scene, DEADLOCK)
    running = scene.publishing.publish([scene.publishing.payload(Quick, work_ms=1_500) for _ in range(20)])
    ids = [one.job_id for one in running]
    rows = text("select job_id from job_executions where job_id = any(:ids) order by job_id desc for update")
    with database.begin() as other:
        # The sink's session looks for deadlocks after 1 s: before this one does.
        other.execute(text("set local deadlock_timeout = '60s'"))
        wait_until(lambda: bool(other.execute(rows, {"ids": ids}).all()), 10, "the jobs are tracked")
        wait_until(lambda: _sinks_backends(scene, WAITING) > 0, 20, "the sink waits for a row")
        other.execute(text("select position from sink_positions order by partition desc for update"))
    wait_until(lambda: _logged(scene, DEADLOCK) > told, 10, "the sink tells that it was the victim")


@fault("postgres-no-connections", seconds=45)
def postgres_no_connections(scene: Scene, seed: random.Random) -> Figures:
    """Others hold all the connections that PostgreSQL has, and the sink's are closed, for 12 s."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    pid = scene.sink.pid
    others: list[connection] = []
    try:
        with hurt(scene, figures, "no connections"):
            _take_all(scene, others)
            scene.play(12)
    finally:
        for other in others:
            other.close()
    figures.note("taken", len(others))
    figures.check("sink was told", _logged(scene, "too many clients") > 0, _logged(scene, "too many clients"))
    _same_sink(scene, figures, pid)
    afterwards(scene, figures)
    return figures


def _take_all(scene: Scene, others: list[connection]) -> None:
    """Take every connection that there is, and those that the sink has."""
    url = make_url(scene.stack.postgres).set(drivername="postgresql").render_as_string(hide_password=False)
    deadline = time.monotonic() + 30
    while True:
        assert time.monotonic() < deadline, "the sink keeps a connection"
        with suppress(psycopg2.OperationalError):
            while True:
                others.append(psycopg2.connect(url))
                others[-1].autocommit = True
        with others[0].cursor() as cursor:
            cursor.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'streams'"
            )
            if not cursor.fetchall():
                return


@fault("postgres-disk-full", seconds=50)
def postgres_disk_full(scene: Scene, seed: random.Random) -> Figures:
    """The disk that holds the store's tables is full for 15 s; then there is space again."""
    figures = Figures()
    if os.geteuid() != 0:
        scene.under_load(PER_SECOND, workers=1, ends=120)
        figures.note("not played", "a small disk is mounted, which takes root")
        afterwards(scene, figures)
        return figures
    _stop_sink(scene)
    with _small_disk(scene) as disk:
        pid = scene.start_sink().pid
        scene.under_load(PER_SECOND, workers=1, ends=120)
        with hurt(scene, figures, "disk full"):
            _fill(disk)
            scene.play(15)
        figures.check("disk was full", _logged(scene, "No space left") > 0, _logged(scene, "No space left"))
        _same_sink(scene, figures, pid)
        (disk / "filling").unlink()
        afterwards(scene, figures)
        _stop_sink(scene)
    scene.start_sink()
    return figures


@contextmanager
def _small_disk(scene: Scene) -> Iterator[Path]:
    """Move the store to a disk of its own, and at the end back."""
    name = make_url(scene.database_url).database
    disk = Path(tempfile.mkdtemp(prefix="chaos-disk-"))
    owner = (scene.stack.data_dir / "postgres").stat().st_uid
    run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700,uid={owner}", "chaos", disk], check=True)
    try:
        scene.theatre.sql(f"create tablespace {name} location '{disk}'")
        scene.theatre.sql(f"alter database {name} set tablespace {name}")
        yield disk
        scene.theatre.sql(f"alter database {name} set tablespace pg_default")
        scene.theatre.sql(f"drop tablespace {name}")
    finally:
        run(["umount", "--lazy", disk], check=True)
        disk.rmdir()


def _fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as filling:
        while True:
            filling.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0


@fault("sink-killed", seconds=70)
def sink_killed(scene: Scene, seed: random.Random) -> Figures:
    """kill -9 of the sink with rows written and not committed, and between its commit and anything else."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    _stop_sink(scene)
    with hurt(scene, figures, "sink killed"):
        for point in ("before-commit", "after-commit"):
            dying = scene.start_sink(*WITH_FAILPOINT, SINK_FAILPOINT=f"{point}:KILL:{seed.randint(2, 9)}")
            code = dying.wait(SESSION_SECONDS + 25)
            figures.check(f"killed {point}", code == -signal.SIGKILL, code)
    scene.start_sink()
    afterwards(scene, figures, SESSION_SECONDS + 20)
    return figures


@fault("sink-zombie", seconds=60)
def sink_zombie(scene: Scene, seed: random.Random) -> Figures:
    """One of two sinks freezes with events in its hands, the other takes over, it thaws and is fenced."""
    figures = Figures()
    scene.under_load(PER_SECOND, workers=1, ends=120)
    _stop_sink(scene)
    zombie = scene.start_sink(*WITH_FAILPOINT, SINK_FAILPOINT=f"before-write:STOP:{seed.randint(3, 9)}")
    try:
        with hurt(scene, figures, "sink frozen"):
            stopped = psutil.Process(zombie.pid)
            wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED, 20, "the sink freezes")
            scene.start_sink()
            _await_tracking(scene, figures, SESSION_SECONDS + 20)
        zombie.send_signal(signal.SIGCONT)
        wait_until(lambda: _logged(scene, "joining the group again") > 0, 20, "the zombie is fenced")
        figures.check("fenced", _logged(scene, "another sink has taken over") == 1, 1)
        scene.play(5)
        afterwards(scene, figures)
    finally:
        zombie.send_signal(signal.SIGCONT)
        zombie.terminate()
        figures.check("zombie leaves", zombie.wait(20) == 0, zombie.returncode)
    return figures


def _stop_sink(scene: Scene) -> None:
    wait_until(lambda: _logged(scene, "tracking.sink: reading") > 0, 40, "the sink reads")
    scene.sink.terminate()
    assert scene.sink.wait(20) == 0, "the sink left with an error"


def _logged(scene: Scene, words: str) -> int:
    return (scene.pipeline.folder / "sink.log").read_text(errors="replace").count(words)
