"""The same three services as containers, for test runs where a Docker engine answers (`STACK=docker`).

Each has a fixed port of the host, so that it keeps its address when a fault test stops and starts it.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from devstack import handshake
from devstack.postgres import DATABASE, ROLE
from devstack.process import free_port
from devstack.service import Service, StackError
from devstack.stack import Stack, start_all

if TYPE_CHECKING:
    from docker.models.containers import Container
    from testcontainers.core.container import DockerContainer

KAFKA_IMAGE = "apache/kafka:4.3.1"
REDIS_IMAGE = "redis:7"
POSTGRES_IMAGE = "postgres:15"


@dataclass(slots=True)
class ContainerRunner:
    """A container; `make` describes it, and is called once, at the first start."""

    make: "Callable[[], DockerContainer]"
    _container: "Container | None" = field(default=None, init=False)

    @property
    def running(self) -> bool:
        if self._container is None:
            return False
        self._container.reload()
        return self._container.status in ("running", "paused")

    def start(self) -> None:
        if self._container is None:
            self._container = self.make().start().get_wrapped_container()
        else:
            self._container.start()

    def stop(self) -> None:
        if self._container is not None and self.running:
            self.resume()
            self._container.stop(timeout=30)

    def kill(self) -> None:
        if self._container is not None and self.running:
            self._container.kill()
            self._container.wait(timeout=30)

    def pause(self) -> None:
        if self._container is not None and self.running:
            self._container.pause()

    def resume(self) -> None:
        if self._container is not None and self.running and self._container.status == "paused":
            self._container.unpause()

    def log_tail(self, lines: int) -> str:
        if self._container is None:
            return "The container was not made."
        return str(self._container.logs(tail=lines).decode(errors="replace"))

    def remove(self) -> None:
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container = None


class ContainerStack(Stack):
    """A stack of containers, which are removed when it stops."""

    def stop(self, *, clean: bool = False) -> None:
        for service in self.services.values():
            if isinstance(service.runner, ContainerRunner):
                service.runner.remove()
        super().stop(clean=clean)


def start(data_dir: Path) -> Stack:
    """Start the three services as containers; `data_dir` gets the logs of further programs only."""
    _require_engine()
    ports = {name: free_port() for name in ("kafka", "redis", "postgres")}
    password = secrets.token_urlsafe(16)
    stack = ContainerStack(
        kafka=f"127.0.0.1:{ports['kafka']}",
        redis=f"redis://:{password}@127.0.0.1:{ports['redis']}/0",
        postgres=f"postgresql+psycopg2://{ROLE}:{password}@127.0.0.1:{ports['postgres']}/{DATABASE}",
        data_dir=data_dir.resolve(),
    )
    data_dir.mkdir(parents=True, exist_ok=True)
    services = {
        "kafka": (partial(_kafka, ports["kafka"]), partial(handshake.kafka, stack.kafka)),
        "redis": (partial(_redis, ports["redis"], password), partial(handshake.redis, stack.redis)),
        "postgres": (
            partial(_postgres, ports["postgres"], password),
            partial(handshake.postgres, stack.postgres),
        ),
    }
    for name, (make, check) in services.items():
        stack.services[name] = Service(name, ContainerRunner(make), handshake=check)
    start_all(stack)
    return stack


def _require_engine() -> None:
    from docker.errors import DockerException
    from testcontainers.core.docker_client import DockerClient

    try:
        DockerClient().client.ping()
    except DockerException as error:
        raise StackError(
            f"STACK=docker needs a Docker engine and none answers ({error}); start one, or leave STACK unset."
        ) from error


def _kafka(port: int) -> "DockerContainer":
    from testcontainers.core.container import DockerContainer

    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "AUTO_CREATE_TOPICS_ENABLE": "false",
        "DEFAULT_REPLICATION_FACTOR": "1",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "BROKER_SESSION_TIMEOUT_MS": "3000",
        "BROKER_HEARTBEAT_INTERVAL_MS": "500",
    }
    return (
        DockerContainer(KAFKA_IMAGE)
        .with_envs(**{f"KAFKA_{name}": value for name, value in settings.items()})
        .with_bind_ports(9092, port)
    )


def _redis(port: int, password: str) -> "DockerContainer":
    from testcontainers.core.container import DockerContainer

    return DockerContainer(
        REDIS_IMAGE, command=f"redis-server --appendonly yes --requirepass {password}"
    ).with_bind_ports(6379, port)


def _postgres(port: int, password: str) -> "DockerContainer":
    from testcontainers.core.container import DockerContainer

    account = {"POSTGRES_USER": ROLE, "POSTGRES_PASSWORD": password, "POSTGRES_DB": DATABASE}
    return (
        DockerContainer(POSTGRES_IMAGE, command="postgres -c fsync=off -c max_connections=200")
        .with_envs(**account)
        .with_bind_ports(5432, port)
    )
