"""Play faults and judge them."""

import multiprocessing
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos.faults import Fault, load
from tests.chaos.oracle import judge
from tests.chaos.scene import Theatre
from tests.chaos.table import Report
from tests.processes import ROOT

HISTORIES = ROOT / ".run" / "chaos"


def play(
    theatre: Theatre,
    fault: Fault,
    seed: int,
    histories: Path = HISTORIES,
    ended: Callable[[], object] = lambda: None,
) -> Report:
    """Play a fault on a scene of its own and return what the oracle says; logs stay beside the history.

    `ended` is called when it has been played, before its history is read.
    """
    folder = histories / f"{fault.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    report = Report(fault.name, seed, 0.0, history=folder / "history.jsonl")
    try:
        with theatre.scene(folder, seed) as scene:
            scene.start_sink()
            stages = [began, time.monotonic()]
            try:
                figures = fault.act(scene, random.Random(seed))
            finally:
                ended()
            stages.append(time.monotonic())
            history = scene.history()
            stages.append(time.monotonic())
            report.verdicts = [*judge(history, scene.limits), *figures.checks]
            took = [after - before for before, after in pairwise(stages)]
            report.notes = {
                **figures.notes,
                "seconds": "set up {:.0f}, played {:.0f}, read {:.0f}".format(*took),
            }
            assert report.history is not None
            history.save(report.history)
    except Exception:  # noqa: BLE001 - whatever broke the scene is reported, and the next fault is played
        report.error = traceback.format_exc()
    report.seconds = time.monotonic() - began
    return report


def exit_when_terminated() -> None:
    """Let SIGTERM end this process by an exception, so that what was started is ended on the way out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def played(
    programme: Iterable[tuple[Fault, int]], histories: Path, ended: Callable[[], object] = lambda: None
) -> Iterator[Report]:
    """Yield the report on each fault that is to be played with a seed; one stack serves all of them."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account, and must be able to reach its data
    theatre = Theatre(folder / "stack")
    try:
        for fault, seed in programme:
            yield play(theatre, fault, seed, histories, ended)
    finally:
        theatre.close()
        folder.rmdir()


def side_by_side(chosen: Sequence[Fault], seed: int, histories: Path, stacks: int) -> Iterator[Report]:
    """Play the faults in up to so many processes, each with its stack, and yield reports as they come.

    First those that are to be played alone, while the other processes have not begun.
    """
    stacks = min(stacks, max(1, sum(not one.alone for one in chosen)))
    spawn = multiprocessing.get_context("spawn")
    longest_first = [one.name for one in sorted(chosen, key=lambda one: (not one.alone, -one.seconds))]
    missing = set(longest_first)
    with spawn.Manager() as manager:
        left, reports, shared = manager.list(longest_first), manager.Queue(), manager.Event()
        # The longest ones are the heaviest: side by side they would starve each other.
        players = [
            spawn.Process(target=_play_what_is_left, args=(left, number, shared, reports, seed, histories))
            for number in range(stacks)
        ]
        try:
            for player in players:
                player.start()
            while missing:
                goes_on = any(player.is_alive() for player in players)
                if not players[0].is_alive():
                    shared.set()
                try:
                    report = reports.get(timeout=1)
                except queue.Empty:
                    if goes_on:
                        continue
                    break
                missing.discard(report.fault)
                yield report
            for player in players:
                player.join(60)  # it ends its stack
        finally:
            for player in players:
                player.terminate()
                player.join(60)
    yield from (Report(name, seed, 0.0, error="its player ended before") for name in sorted(missing))


def _play_what_is_left(left: Any, number: int, shared: Any, reports: Any, seed: int, histories: Path) -> None:
    """Play what a list names, from one of its ends, until nothing is left.

    All but the first process wait until the machine is `shared`: nothing is left that is to be played alone.
    """
    exit_when_terminated()
    catalogue = load()

    def share() -> None:
        if not any(catalogue[name].alone for name in left):
            shared.set()

    if number > 0:
        shared.wait()
    else:
        share()

    def programme() -> Iterator[tuple[Fault, int]]:
        while True:
            try:
                name = left.pop(-(number % 2))
            except IndexError:
                return
            yield catalogue[name], seed

    for report in played(programme(), histories, share):
        reports.put(report)
