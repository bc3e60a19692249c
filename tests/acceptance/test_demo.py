"""The demonstration, as `make demo` runs it, on a stack of its own."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.stack


@pytest.fixture
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="streams-demo-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account, and must be able to reach its data
    yield folder / "demo"
    command = [sys.executable, "-m", "devstack", "down", "--clean", "--data", str(folder / "demo")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    folder.rmdir()


def test_the_demonstration_meets_every_expectation_and_leaves_nothing_running(data: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "demo", "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"All \d\d expectations are met, \d+ s after the start\.", ended.stdout)
    assert "✗" not in ended.stdout
    assert "4 dead letters of webhooks would be replayed" in ended.stdout
    assert "3 dead letters of document-processing replayed as" in ended.stdout
    assert max(map(len, ended.stdout.splitlines())) <= 100
    assert [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if str(data) in " ".join(one.info["cmdline"] or ())
    ] == []
    assert list(data.glob("artifacts/*/reports/*.pdf"))
    assert "Traceback" not in ended.stderr + "".join(
        log.read_text(errors="replace")
        for log in data.glob("logs/*.log")
        if log.stem not in ("kafka", "postgres")
    )
