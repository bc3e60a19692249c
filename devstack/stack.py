"""The stack: three services, what else was started beside them, and the state file that finds them again."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Lock
from typing import Any

from devstack import handshake
from devstack.kafka import kafka
from devstack.postgres import DATABASE, ROLE, postgres
from devstack.process import Process, free_port, is_free, locked
from devstack.service import Service, StackError
from devstack.valkey import valkey

VARIABLES = {"kafka": "KAFKA_BOOTSTRAP_SERVERS", "redis": "REDIS_URL", "postgres": "DATABASE_URL"}
"""Service to the variable that holds its address; where it is set, the service at that address is used."""


@dataclass
class Stack:
    """Addresses of the three services, and the services by name for those that this stack runs itself."""

    kafka: str
    redis: str
    postgres: str
    data_dir: Path
    services: dict[str, Service] = field(default_factory=dict)
    _record: dict[str, Any] = field(default_factory=lambda: {"services": {}})
    _guard: subprocess.Popen[bytes] | None = None
    _saving: Lock = field(default_factory=Lock)

    def environment(self) -> dict[str, str]:
        """Return the variables by which the project's programs find the services."""
        return {variable: getattr(self, name) for name, variable in VARIABLES.items()}

    def service(self, name: str) -> Service:
        """Return a service by name; raise StackError if this stack does not run it."""
        if name in self.services:
            return self.services[name]
        if name in VARIABLES:
            raise StackError(f"This stack uses the {name} at {VARIABLES[name]} and does not run it.")
        raise StackError(f"This stack runs no {name!r}; it runs: {', '.join(self.services) or 'nothing'}.")

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        ready: Callable[[], None] | None = None,
    ) -> Service:
        """Run a further program as a part of the stack: with a log beside the others', and ended with it.

        It sees this process's variables, the addresses of the services, and then `env`. `ready` raises while
        the program is not ready.
        """
        if name in self.services and self.services[name].running:
            raise StackError(f"{name} runs already.")
        process = Process(
            lambda: command,
            self.data_dir / "logs" / f"{name}.log",
            cwd=cwd or Path.cwd(),
            env={**os.environ, **self.environment(), **(env or {})},
        )
        service = Service(name, process, handshake=ready, changed=self._save)
        self.services[name] = service
        service.start()
        return service

    def stop(self, *, clean: bool = False) -> None:
        """End what this stack runs, programs before services; `clean` removes the data folder too."""
        others = [service for name, service in self.services.items() if name not in VARIABLES]
        own = [service for name, service in self.services.items() if name in VARIABLES]
        for group in (others, own):
            # Data that is removed need not be closed in order.
            _at_once([service.kill if clean and group is own else service.stop for service in group])
        if self._guard is not None:
            self._guard.communicate()
        if clean:
            _remove(self.data_dir)

    def _save(self) -> None:
        with self._saving:
            for name, service in self.services.items():
                if isinstance(service.runner, Process):
                    entry = self._record["services"].setdefault(name, {})
                    entry.pop("process", None)
                    if identity := service.runner.identity:
                        entry["process"] = identity
            _write(self.data_dir / "stack.json", self._record)


def start(data_dir: Path, *, outlive_caller: bool = False, proxied_kafka: Sequence[int] = ()) -> Stack:
    """Start what does not run yet of the stack in `data_dir`, and return once all of it answers.

    The services end with the calling process, however that ends, unless they are to outlive it. With
    `proxied_kafka`, two ports, Kafka listens on the first one, too, and tells its clients there to come to the
    second, where a proxy may stand between.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with locked(data_dir / "lock"):
        record = _with_free_ports(data_dir, _read(data_dir))
        if proxied_kafka:
            record["services"]["kafka"]["proxied"] = list(proxied_kafka)
        stack = _build(data_dir, record)
        if not outlive_caller:
            stack._guard = _guard(data_dir)
        start_all(stack)
    return stack


def start_all(stack: Stack) -> None:
    """Start the stack's services at the same time; end all of them when one does not come up."""
    try:
        _at_once([service.start for name, service in stack.services.items() if name in VARIABLES])
    except BaseException:
        stack.stop()
        raise


def find(data_dir: Path) -> Stack | None:
    """Return the stack in `data_dir` as it is, running or not, or None where none was started.

    Where all services are given by the environment, there is always one.
    """
    data_dir = data_dir.resolve()
    record = _read(data_dir)
    if record is None and not all(map(os.environ.get, VARIABLES.values())):
        return None
    return _build(data_dir, record)


def _with_free_ports(data_dir: Path, record: dict[str, Any] | None) -> dict[str, Any]:
    """Return the record without the ports that other programs have taken since the stack last ran."""
    stack = _build(data_dir, record)
    for name, entry in stack._record["services"].items():
        service = stack.services.get(name)
        if name in VARIABLES and service is not None and not service.running and not is_free(entry["port"]):
            del entry["port"]
    return stack._record


def _build(data_dir: Path, record: dict[str, Any] | None) -> Stack:
    record = record or {"password": secrets.token_urlsafe(16), "services": {}}
    entries, password = record["services"], record["password"]
    stack = Stack("", "", "", data_dir, {}, record)
    for name, variable in VARIABLES.items():
        entry = entries.setdefault(name, {})
        log_file = data_dir / "logs" / f"{name}.log"
        entry.setdefault("port", free_port())
        url, process, check = _service(name, data_dir, entry, password, log_file)
        if identity := entry.get("process"):
            process.adopt(identity)
        given = os.environ.get(variable)
        # A shell may hold this stack's own addresses: `eval "$(python -m devstack env)"`.
        if given and given != url and not process.running:
            setattr(stack, name, given)
            continue
        setattr(stack, name, url)
        stack.services[name] = Service(name, process, handshake=check, changed=stack._save)
    for name in [name for name in entries if name not in VARIABLES]:
        process = Process(partial(_refuse, name), data_dir / "logs" / f"{name}.log", cwd=data_dir)
        if identity := entries[name].get("process"):
            process.adopt(identity)
            stack.services[name] = Service(name, process, changed=stack._save)
    return stack


def _service(
    name: str, data_dir: Path, entry: Mapping[str, Any], password: str, log_file: Path
) -> tuple[str, Process, Callable[[], None]]:
    port: int = entry["port"]
    match name:
        case "kafka":
            url = f"127.0.0.1:{port}"
            broker = kafka(data_dir / "kafka", port, log_file, entry.get("proxied", ()))
            return url, broker, partial(handshake.kafka, url)
        case "redis":
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            return url, valkey(data_dir / "redis", port, password, log_file), partial(handshake.redis, url)
        case _:
            url = f"postgresql+psycopg2://{ROLE}:{password}@127.0.0.1:{port}/{DATABASE}"
            return url, postgres(data_dir, port, password, log_file), partial(handshake.postgres, url)


def _refuse(name: str) -> Sequence[str]:
    raise StackError(f"{name} was started by another run, and only that can start it again.")


def _guard(data_dir: Path) -> subprocess.Popen[bytes]:
    """Start the process that ends the stack when its input closes, as it does however this process ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "devstack", "guard", "--data", str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _at_once(actions: Iterable[Callable[[], None]]) -> None:
    """Do all at the same time, wait for all, and raise StackError with what went wrong."""
    with ThreadPoolExecutor() as pool:
        results = [pool.submit(action) for action in actions]
    failures = [error for result in results if (error := result.exception())]
    for error in failures:
        if not isinstance(error, StackError):
            raise error
    if failures:
        raise StackError("\n".join(map(str, failures)))


def _read(data_dir: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((data_dir / "stack.json").read_text())
    except FileNotFoundError:
        return None
    return record


def _write(path: Path, record: dict[str, Any]) -> None:
    """Replace the file in one step; it holds a password, so only its owner may read it."""
    unfinished = path.with_suffix(".new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    unfinished.replace(path)


def _remove(data_dir: Path) -> None:
    elsewhere = data_dir / "postgres"
    if elsewhere.is_symlink():
        rmtree(elsewhere.resolve())
    with suppress(FileNotFoundError):
        rmtree(data_dir)
