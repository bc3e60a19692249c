"""`.env.example` lists every variable that is read, with its real default and one line that explains it."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from streams.queues import QUEUES
from streams.settings import Settings

ROOT = Path(__file__).parents[2]
LINES = (ROOT / ".env.example").read_text().splitlines()
ENTRY = re.compile(r"(# )?([A-Z][A-Z0-9_]+)=(.*)")

SHAPED_LIKE_A_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
NO_VARIABLE_THAT_IS_READ = {"MAX_BYTES", "LC_ALL", "DEBIAN_FRONTEND", "PG_VERSION"}
"""Texts in the code that look like one: names in `__all__`, what child processes are given, a file."""

CONCURRENCY = {"CONCURRENCY_" + name.upper().replace("-", "_") for name in QUEUES}


def entries() -> dict[str, tuple[bool, str]]:
    """Return each variable with whether it is set in the file, and its value."""
    matches = [match for line in LINES if (match := ENTRY.fullmatch(line))]
    return {name: (not commented, value) for commented, name, value in (match.groups() for match in matches)}


def texts(folder: str, *left_out: str) -> Iterator[str]:
    """Yield every text in the code of a folder that is written like a variable."""
    for path in (ROOT / folder).rglob("*.py"):
        if path.name not in left_out:
            for node in ast.walk(ast.parse(path.read_text())):
                value = getattr(node, "value", None)
                if isinstance(value, str) and SHAPED_LIKE_A_VARIABLE.fullmatch(value):
                    yield value


def test_every_variable_that_is_read_is_listed_and_no_other() -> None:
    read = {name.upper() for name in Settings.model_fields} | CONCURRENCY
    read |= set(texts("providers")) | set(texts("cli"))
    # containers.py holds the variables of the images that it runs.
    read |= set(texts("devstack", "containers.py"))
    read |= set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.worker.yml").read_text()))
    assert set(entries()) == read - NO_VARIABLE_THAT_IS_READ | {"STACK"}


def test_each_variable_is_listed_once_and_has_one_line_that_explains_it() -> None:
    seen: list[str] = []
    for before, line in pairwise(LINES):
        if match := ENTRY.fullmatch(line):
            seen.append(match[2])
            assert re.fullmatch(r"# [A-Za-z0-9`].*\.", before), line
    assert len(seen) == len(set(seen))


def test_the_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in entries():
        monkeypatch.delenv(name, raising=False)
    given, default = Settings(_env_file=ROOT / ".env.example"), Settings(_env_file=None)
    assert given == default
    set_in_file = {name for name, (is_set, _) in entries().items() if is_set}
    own = {name.upper(): info for name, info in Settings.model_fields.items()}
    optional = {name for name, info in own.items() if info.default is None or info.default_factory}
    assert set_in_file & set(own) == set(own) - optional


def test_what_is_commented_out_would_be_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in entries():
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / ".env"
    file.write_text("\n".join(f"{name}={value}" for name, (_, value) in entries().items()))
    taken = Settings(_env_file=file)
    for name in CONCURRENCY:
        monkeypatch.setenv(name, entries()[name][1])
    assert {queue.name: taken.concurrency(queue) for queue in QUEUES.values()} == {
        queue.name: queue.concurrency for queue in QUEUES.values()
    }
    assert taken.redis == "redis://:change-me@127.0.0.1:6379/0"


def test_a_shell_can_read_the_file() -> None:
    script = f'set -a; . {ROOT / ".env.example"}; printf %s "$MAIL_FROM"'
    done = subprocess.run(["sh", "-euc", script], env={"PATH": os.defpath}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no-reply@localhost", "")
