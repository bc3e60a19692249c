"""Play one fault and judge it."""

import random
import shutil
import time
import traceback
from itertools import pairwise
from pathlib import Path

from tests.chaos.faults import Fault
from tests.chaos.oracle import judge
from tests.chaos.scene import Theatre
from tests.chaos.table import Report
from tests.processes import ROOT

HISTORIES = ROOT / ".run" / "chaos"


def play(theatre: Theatre, fault: Fault, seed: int, histories: Path = HISTORIES) -> Report:
    """Play a fault on a scene of its own and return what the oracle says; logs stay beside the history."""
    folder = histories / f"{fault.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    report = Report(fault.name, seed, 0.0, history=folder / "history.jsonl")
    try:
        with theatre.scene(folder, seed) as scene:
            scene.start_sink()
            stages = [began, time.monotonic()]
            figures = fault.act(scene, random.Random(seed))
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
