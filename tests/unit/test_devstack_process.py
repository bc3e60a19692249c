"""Processes: only those that the stack itself started are ever touched."""

import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from devstack.process import Identity, Process, free_port, is_free
from devstack.service import Service, StackError


def _process(tmp_path: Path, *command: str) -> Process:
    return Process(lambda: command, tmp_path / "logs" / "p.log", cwd=tmp_path)


def test_stop_ends_it(tmp_path: Path) -> None:
    process = _process(tmp_path, "sleep", "600")
    process.start()
    assert process.running
    process.stop()
    assert not process.running
    assert process.identity is None


def test_stop_kills_what_ignores_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = _process(tmp_path, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    process.grace = timedelta(milliseconds=200)
    Service("stubborn", process, handshake=lambda: _require("up" in process.log_tail(5))).start()
    process.stop()
    assert not process.running
    assert "was killed" in caplog.text


def _require(condition: bool) -> None:
    if not condition:
        raise ConnectionError("not yet")


def test_stop_ends_a_paused_one(tmp_path: Path) -> None:
    process = _process(tmp_path, "sleep", "600")
    process.start()
    process.pause()
    process.stop()
    assert not process.running


def test_a_process_is_found_again_by_pid_and_start_time(tmp_path: Path) -> None:
    process = _process(tmp_path, "sleep", "600")
    process.start()
    identity = process.identity
    assert identity is not None
    other = _process(tmp_path, "never", "run")
    other.adopt(identity)
    assert other.running
    other.stop()
    assert not process.running


def test_another_program_with_the_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        started = psutil.Process(stranger.pid).create_time()
        process = _process(tmp_path, "never", "run")
        process.adopt(Identity(pid=stranger.pid, started=started - 100))
        assert not process.running
        process.stop()
        process.kill()
        assert stranger.poll() is None
        stranger.kill()


def test_a_service_that_ends_shows_the_end_of_its_log(tmp_path: Path) -> None:
    process = _process(tmp_path, "sh", "-c", "echo no such file; exit 3")
    with pytest.raises(StackError, match=r"broken ended while it started(.|\n)*no such file"):
        Service("broken", process, handshake=lambda: _require(False)).start()


def test_a_service_that_never_answers_is_reported_at_the_deadline(tmp_path: Path) -> None:
    process = _process(tmp_path, "sh", "-c", "echo waiting for godot; exec sleep 600")
    service = Service("mute", process, handshake=lambda: _require(False))
    try:
        with pytest.raises(StackError, match=r"mute did not answer within 0\.3 s \(not yet\)(.|\n)*godot"):
            service.start(within=timedelta(milliseconds=300))
    finally:
        process.kill()


def test_ports_are_free_and_outside_the_range_of_outgoing_connections() -> None:
    assert 20_000 <= free_port() < 32_000


def test_a_port_in_use_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_a_free_port_is_none_of_those_that_it_may_not_be() -> None:
    left = free_port()
    assert free_port(but=set(range(20_000, 32_000)) - {left}) == left
    with pytest.raises(OSError, match="none of 0 ports"):
        free_port(but=range(20_000, 32_000))
