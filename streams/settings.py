"""Every knob, read from the environment and checked at once.

Names are the environment variables in upper case, as listed in `.env.example`.
"""

import os
import socket
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import quote

from dotenv import load_dotenv
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from streams.durations import Duration
from streams.errors import ConfigError
from streams.queues import QUEUES, WORKER_TYPES, OnRedisDown, Queue, WorkerType

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100
Weight = Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
"""An organization's share of the slots, beside 1 for every other."""

HEALTH_PORTS: dict[WorkerType, int] = {"primary": 8081, "document": 8082, "ai": 8083, "scheduled": 8084}


class Settings(BaseSettings):
    """The configuration of one process; durations are texts such as `30s`, `5m` or `7d`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str | None = None
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_ca_location: str | None = None
    kafka_partitions: int = Field(6, ge=1, le=1000)
    kafka_replication: int = Field(1, ge=1)
    kafka_min_insync: int = Field(1, ge=1)
    kafka_start_timeout: Duration = timedelta(seconds=30)
    jobs_retention: Duration = timedelta(days=14)
    dead_letter_retention: Duration = timedelta(days=90)
    lifecycle_retention: Duration = timedelta(days=30)
    kafka_session_timeout: Duration = timedelta(seconds=20)
    publish_timeout: Duration = timedelta(seconds=10)
    publish_caps: bool = True
    schema_registry_url: str | None = None
    schema_history: Path | None = None

    redis_url: SecretStr | None = None
    redis_host: str = "127.0.0.1"
    redis_port: int = 6379
    redis_password: SecretStr | None = None
    redis_tls_enabled: bool = False
    redis_prefix: str = Field("streams", pattern=r"^[A-Za-z0-9_.-]+$")

    database_url: SecretStr | None = None

    worker_type: WorkerType | None = None
    worker_id: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    worker_concurrency: int | None = Field(None, ge=1)
    process_count: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    health_host: str = "127.0.0.1"
    health_port: int | None = None
    stalled_after: Duration = timedelta(seconds=60)
    stalled_exit: bool = True
    handler_modules: Annotated[tuple[str, ...], NoDecode] = ()

    on_redis_down: Annotated[dict[str, OnRedisDown], NoDecode] = Field(default_factory=dict)
    lease: Duration = timedelta(seconds=30)
    marker_retention: Duration = timedelta(days=7)
    shutdown_grace: Duration = timedelta(seconds=25)
    revoke_grace: Duration = timedelta(seconds=10)
    fair_lanes: bool = True
    organization_weights: Annotated[dict[str, Weight], NoDecode] = {}
    window_records: int = Field(2000, ge=1)
    window_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    window_span: int = Field(10_000, ge=1)
    snooze_limit: int = Field(10_000, ge=1, le=999_999)
    unknown_schema_delay: Duration = timedelta(seconds=30)
    unknown_schema_limit: Duration = timedelta(hours=24)

    @model_validator(mode="before")
    @classmethod
    def _split_modules(cls, values: dict[str, Any]) -> dict[str, Any]:
        modules = values.get("handler_modules")
        if isinstance(modules, str):
            values["handler_modules"] = tuple(name.strip() for name in modules.split(",") if name.strip())
        return values

    @model_validator(mode="before")
    @classmethod
    def _split_weights(cls, values: dict[str, Any]) -> dict[str, Any]:
        weights = values.get("organization_weights")
        if isinstance(weights, str):
            pairs = [pair.partition("=") for pair in weights.split(",") if pair.strip()]
            values["organization_weights"] = {name.strip(): weight for name, _, weight in pairs}
        return values

    @field_validator("on_redis_down", mode="before")
    @classmethod
    def _split_policies(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        policies = dict(part.strip().partition(":")[::2] for part in value.split(",") if part.strip())
        if unknown := policies.keys() - QUEUES.keys():
            raise ValueError(
                f"expected queue:policy, such as emails:local, with the name of a queue, got {unknown}"
            )
        return policies

    @model_validator(mode="after")
    def _durations_fit(self) -> Self:
        if self.lease < timedelta(seconds=3):
            raise ValueError(f"LEASE must be at least 3 s to be renewed in time, got {self.lease}")
        if self.stalled_after < timedelta(seconds=5):
            raise ValueError(
                f"STALLED_AFTER must be at least 5 s, as an answer may take so long, got {self.stalled_after}"
            )
        if self.marker_retention <= self.lease:
            raise ValueError(
                f"MARKER_RETENTION ({self.marker_retention}) must exceed LEASE ({self.lease}), "
                "or a job would be forgotten while it runs"
            )
        if self.kafka_min_insync > self.kafka_replication:
            raise ValueError(
                f"KAFKA_MIN_INSYNC ({self.kafka_min_insync}) must not exceed "
                f"KAFKA_REPLICATION ({self.kafka_replication})"
            )
        return self

    @property
    def redis(self) -> str:
        """Return the Redis URL, built from host, port, password and TLS when no URL is set."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        scheme = "rediss" if self.redis_tls_enabled else "redis"
        password = (
            f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        )
        return f"{scheme}://{password}{self.redis_host}:{self.redis_port}/0"

    @property
    def kafka(self) -> dict[str, Any]:
        """Return the connection part of a confluent-kafka configuration."""
        config: dict[str, Any] = {
            "bootstrap.servers": self.kafka_bootstrap_servers,
            "security.protocol": self.kafka_security_protocol,
        }
        if self.kafka_sasl_mechanism:
            config["sasl.mechanism"] = self.kafka_sasl_mechanism
            config["sasl.username"] = self.kafka_sasl_username or ""
            config["sasl.password"] = (
                self.kafka_sasl_password.get_secret_value() if self.kafka_sasl_password else ""
            )
        if self.kafka_ssl_ca_location:
            config["ssl.ca.location"] = self.kafka_ssl_ca_location
        return config

    def policy(self, queue: Queue) -> OnRedisDown:
        """Return what a queue does while Redis is away: what ON_REDIS_DOWN says of it, else its own."""
        return self.on_redis_down.get(queue.name, queue.on_redis_down)

    def concurrency(self, queue: Queue) -> int:
        """Return how many jobs of a queue one worker runs at once: CONCURRENCY_<QUEUE>, else WORKER_CONCURRENCY."""
        name = "CONCURRENCY_" + queue.name.upper().replace("-", "_")
        own = os.environ.get(name)
        if own is None:
            return self.worker_concurrency or queue.concurrency
        if not own.isdecimal() or int(own) < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {own!r}")
        return int(own)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return this process's settings; raises ConfigError naming every variable that is wrong."""
    return load_settings()


def load_settings(**overrides: Any) -> Settings:
    """Read the environment anew; raises ConfigError naming every variable that is wrong.

    What a file `.env` in the working directory sets is put into the environment first, where it is not set
    already: providers read theirs from there.
    """
    load_dotenv(".env")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']).upper() or 'settings'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"the environment does not fit: {problems}") from None


def check_worker_type(value: str | None) -> WorkerType:
    """Return the worker type, or raise ConfigError naming those there are."""
    for worker_type in WORKER_TYPES:
        if value == worker_type:
            return worker_type
    raise ConfigError(f"WORKER_TYPE must be one of {', '.join(WORKER_TYPES)}, got {value!r}")


def known_queue(name: str) -> Queue:
    """Return the queue of that name, or raise ConfigError naming those there are."""
    if name not in QUEUES:
        raise ConfigError(f"unknown queue {name!r}; expected one of {', '.join(QUEUES)}")
    return QUEUES[name]
