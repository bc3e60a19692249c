"""The `streams` command as a whole; what single commands do is tested with what they are about."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from cli.main import main

ROOT = Path(__file__).parents[2]


def test_a_command_loads_nothing_that_only_others_need() -> None:
    looks = (
        "import sys, cli.main as c; c.main(['pause', '--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", looks], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "cli.pauses" in loaded
    assert not {"cli.tracking", "cli.publish", "sqlalchemy", "alembic"} & set(loaded)


def test_a_command_that_there_is_not_is_told() -> None:
    result = CliRunner().invoke(main, ["pauze"])
    assert result.exit_code == 2
    assert "No such command 'pauze'" in result.output
