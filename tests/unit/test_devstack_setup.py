"""What the stack does about missing programs, its cache, and the environment."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from devstack import StackError, containers, find, kafka, packages, postgres


def _fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty PATH of ours before the system's shell, and a cache of its own."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "touch", "mkdir", "cat"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAVA_HOME", str(programs / "jdk"))
    _fake(programs / "jdk", "release", "")
    (programs / "jdk" / "bin").mkdir()
    _fake(programs / "jdk" / "bin", "java", "echo 'openjdk version \"17.0.1\"' >&2")
    return programs


def test_a_missing_program_is_named_with_its_command(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StackError, match=r"^Maven is missing; install it with: sudo apt-get install maven$"):
        packages.install("Maven", ["maven"])


def test_root_on_debian_installs_the_first_package_known(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    asked = bare / "asked"
    _fake(bare, "apt-get", f'echo "$DEBIAN_FRONTEND $@" >> {asked}')
    _fake(bare, "apt-cache", 'test "$2" = newer')
    packages.install("Java", ["older", "newer"])
    update, install = asked.read_text().splitlines()
    assert update == "noninteractive -qq update"
    assert install.startswith("noninteractive ")
    assert install.endswith("install newer")


def test_jars_appear_whole_or_not_at_all(bare: Path) -> None:
    _fake(
        bare,
        "mvn",
        'for a; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done; mkdir "$d"; touch "$d/half"; exit 1',
    )
    with pytest.raises(StackError, match="exit code 1"):
        kafka.jars()
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "streams-jobs"
    assert [path.name for path in cache.iterdir()] == ["kafka.lock"]

    _fake(
        bare,
        "mvn",
        'for a; do case $a in -DoutputDirectory=*) d=${a#*=};; esac; done; mkdir "$d"; touch "$d/k.jar"',
    )
    folder = kafka.jars()
    assert folder.parent == cache
    assert [path.name for path in folder.iterdir()] == ["k.jar"]

    _fake(bare, "mvn", "exit 1")
    assert kafka.jars() == folder, "fetched once"


def test_an_old_java_is_not_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(bare / "jdk" / "bin", "java", "echo 'openjdk version \"11.0.2\"' >&2")
    _fake(bare, "java", "echo 'openjdk version \"21\" 2023-09-19' >&2")
    assert kafka.java() == str(bare / "java")


def test_services_of_the_environment_are_used_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
        "REDIS_URL": "rediss://redis.example/0",
        "DATABASE_URL": "postgresql://db.example/streams",
    }
    for variable, address in given.items():
        monkeypatch.setenv(variable, address)
    stack = find(tmp_path)
    assert stack is not None
    assert stack.environment() == given
    assert stack.services == {}
    with pytest.raises(StackError, match="uses the kafka at KAFKA_BOOTSTRAP_SERVERS"):
        stack.service("kafka")


def test_an_unknown_service_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "stack.json").write_text(json.dumps({"password": "p", "services": {}}))
    stack = find(tmp_path)
    assert stack is not None
    with pytest.raises(StackError, match="it runs: kafka, redis, postgres"):
        stack.service("zookeeper")


def test_no_stack_is_found_where_none_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert find(tmp_path) is None


def test_a_database_of_another_version_is_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_BIN", str(tmp_path))
    cluster = tmp_path / "s" / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("14\n")
    server = postgres.postgres(tmp_path / "s", 5432, "secret", tmp_path / "log")
    with pytest.raises(StackError, match="made by PostgreSQL 14"):
        server.prepare()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_containers_need_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(StackError, match="STACK=docker needs a Docker engine and none answers"):
        containers.start(tmp_path / "s")
    gc.collect()  # the Docker SDK leaves its socket for the collector to close


def test_an_unexpected_error_in_the_log_fails_a_test(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    (tmp_path / "conftest.py").write_text((root / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import logging\n"
        "def test_silent(): logging.getLogger('a').error('boom')\n"
        "def test_expected(expected_errors):\n"
        "    expected_errors.add('a:boom')\n"
        "    logging.getLogger('a').error('boom')\n"
    )
    command: Sequence[str] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "a: boom" in result.stdout
    assert "2 passed, 1 error" in result.stdout
