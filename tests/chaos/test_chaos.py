"""The subset of the catalogue that every test run plays; all of it: `make chaos`.

It plays in a process of its own, for the job types of the catalogue must not be known to other tests: what they
publish would be written with schemas that their workers do not have.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.stack

SEED = 7
SUBSET = (
    "kill-worker", "failpoint-after-settle", "sigterm", "zombie-worker", "redis-flushed",
    "redis-answers-lost", "postgres-deadlock", "poison-bytes", "published-100-times",
)  # fmt: skip

Report = dict[str, Any]


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Report]]:
    """Play the subset, and return the report on a fault as soon as it has been played."""
    folder = tmp_path_factory.mktemp("chaos")
    faults = [argument for name in SUBSET for argument in ("--fault", name)]
    command = [
        sys.executable,
        "-m",
        "tests.chaos",
        *faults,
        "--seed",
        str(SEED),
        "--json",
        "--to",
        str(folder),
    ]
    with (folder / "errors").open("wb") as errors:
        playing = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    reports: dict[str, Report] = {}
    assert playing.stdout is not None
    lines = iter(playing.stdout)

    def wait_for(name: str) -> Report:
        while name not in reports:
            line = next(lines, None)
            assert line is not None, (folder / "errors").read_text()
            report = json.loads(line)
            reports[report["fault"]] = report
        return reports[name]

    yield wait_for
    playing.terminate()
    playing.wait(60)
    playing.stdout.close()


@pytest.mark.parametrize("name", SUBSET)
def test_every_invariant_holds(report_of: Callable[[str], Report], name: str) -> None:
    report = report_of(name)
    assert report["holds"], report["complaint"]


def test_the_subset_is_what_the_catalogue_says(tmp_path: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--list"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    chosen = {line.split()[0] for line in listed.stdout.splitlines() if " ci " in line}
    assert chosen == set(SUBSET)
