"""What can be said of the container files without an engine, and of the variables they are given."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from streams.queues import WORKER_TYPES
from streams.settings import HEALTH_PORTS, Settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.worker.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile.worker").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
PROGRAMS = ["init", "tracking", *(f"worker-{name}" for name in WORKER_TYPES)]
STORES = ["kafka", "redis", "postgres"]


@pytest.mark.parametrize(
    ("worker", "cpus", "memory"),
    [("primary", "2", "2G"), ("document", "2", "4G"), ("ai", "1", "2G"), ("scheduled", "0.5", "1G")],
)
def test_each_worker_has_its_limits_and_reservations(worker: str, cpus: str, memory: str) -> None:
    resources = SERVICES[f"worker-{worker}"]["deploy"]["resources"]
    assert resources["limits"] == {"cpus": cpus, "memory": memory}
    assert 0 < float(resources["reservations"]["cpus"]) <= float(cpus)
    assert _mebibytes(resources["reservations"]["memory"]) <= _mebibytes(memory)


def _mebibytes(size: str) -> int:
    return int(size[:-1]) * {"M": 1, "G": 1024}[size[-1]]


def test_there_is_a_worker_of_every_type_and_nothing_unknown() -> None:
    assert set(SERVICES) == {*PROGRAMS, *STORES}
    for worker in WORKER_TYPES:
        service = SERVICES[f"worker-{worker}"]
        assert service["command"] == ["faust", "-A", f"streams.{worker}", "worker"]
        assert service["environment"]["WORKER_TYPE"] == worker
        assert service["environment"]["HEALTH_PORT"] == str(HEALTH_PORTS[worker])


def test_stores_have_the_versions_the_project_supports() -> None:
    assert SERVICES["kafka"]["image"].startswith("apache/kafka:4.")
    assert SERVICES["redis"]["image"] == "redis:7"
    assert SERVICES["postgres"]["image"] == "postgres:15"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"init"}))
def test_everything_that_stays_is_checked_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    if name.startswith("worker-"):
        assert "HEALTHCHECK" in DOCKERFILE
        assert not service.get("healthcheck", {}).get("disable")
    else:
        assert service["healthcheck"]["test"]
    assert "limits" in service["deploy"]["resources"]


def test_programs_wait_for_topics_and_tables() -> None:
    assert SERVICES["init"]["command"][-1] == "streams topics ensure && streams db upgrade"
    assert SERVICES["init"]["restart"] == "no"
    for name in set(PROGRAMS) - {"init"}:
        assert SERVICES[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}
    for store in ("kafka", "postgres"):
        assert SERVICES["init"]["depends_on"][store] == {"condition": "service_healthy"}


def test_stores_are_on_a_network_without_a_way_out() -> None:
    assert COMPOSE["networks"]["data"]["internal"] is True
    for name in (*STORES, "tracking", "init"):
        assert SERVICES[name]["networks"] == ["data"]
    for name, service in SERVICES.items():
        assert "ports" not in service, f"{name} is reachable from outside"
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_stores_keep_their_data_in_named_volumes() -> None:
    for name in STORES:
        volume = SERVICES[name]["volumes"][0].split(":")[0]
        assert volume in COMPOSE["volumes"]
    assert SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"] == SERVICES["kafka"]["volumes"][0].split(":")[1]
    assert "--requirepass" in SERVICES["redis"]["command"]
    assert SERVICES["redis"]["command"][1:3] == ["--appendonly", "yes"]


def test_programs_may_only_write_where_they_must() -> None:
    for name in PROGRAMS:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "user" not in service, "the image names the user"


def test_the_grace_of_a_container_exceeds_that_of_the_worker() -> None:
    for worker in WORKER_TYPES:
        seconds = int(SERVICES[f"worker-{worker}"]["stop_grace_period"].removesuffix("s"))
        assert seconds > Settings.model_fields["shutdown_grace"].default.total_seconds()


def test_no_secret_is_written_down() -> None:
    text = (ROOT / "docker-compose.worker.yml").read_text()
    for line in text.splitlines():
        if re.search(r"PASSWORD|REDISCLI_AUTH|requirepass", line) and not line.lstrip().startswith("#"):
            assert "${" in line, line


def test_the_image_has_two_stages_and_an_account_of_its_own() -> None:
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert len(stages) == 2
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert "--from=build" in last


def test_the_build_sees_every_package_and_nothing_else() -> None:
    seen = set((ROOT / "docker" / "Dockerfile.worker.dockerignore").read_text().splitlines())
    assert "*" in seen
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'"([a-z.]+)"', pyproject.split("packages = [")[1].split("]")[0])
    for package in {name.partition(".")[0] for name in packages}:
        assert f"!{package}" in seen
    assert "!.env" not in seen


@contextmanager
def _worker(status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"state")

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_says_what_the_worker_says(status: int, exit_code: int) -> None:
    with _worker(status) as port:
        result = _check_health(port)
    assert (result.returncode, result.stdout.strip()) == (exit_code, "state")


def test_the_health_check_fails_when_nothing_answers() -> None:
    with _worker(200) as port:
        pass
    result = _check_health(port)
    assert result.returncode == 1
    assert f"nothing answers on port {port}" in result.stdout


def test_a_worker_that_answers_nothing_is_given_up_in_time() -> None:
    """A blocked event loop takes the connection and stays silent."""
    (image,) = re.findall(r"^HEALTHCHECK .*--timeout=(\d+)s", DOCKERFILE, re.M)
    script = (ROOT / "docker" / "healthcheck.py").read_text()
    (own,) = re.findall(r"timeout=(\d+)", script)
    assert int(own) < int(image), "the script says why before Docker ends it"
    for name, service in SERVICES.items():
        check = service.get("healthcheck", {})
        assert check.get("disable") or not check or "timeout" in check, name


def _check_health(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "docker" / "healthcheck.py"],
        env={"HEALTH_PORT": str(port), "http_proxy": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=30,
    )


def _variables_of_the_example() -> set[str]:
    return set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.M))


def test_every_setting_is_in_the_example() -> None:
    assert {name.upper() for name in Settings.model_fields} <= _variables_of_the_example()


def test_every_variable_that_code_reads_is_in_the_example() -> None:
    read = (
        r"(?:environ(?:\.get\(|\[)|\b(?:env\.get|setting|secret|getenv)\(|envvar=)"
        r"[\"']([A-Z][A-Z0-9_]+)[\"']"
    )
    used = {
        (name, str(path.relative_to(ROOT)))
        for package in ("streams", "schemas", "tracking", "ratelimit", "providers", "cli")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(read, path.read_text())
    }
    assert used, "the pattern finds what it looks for"
    assert {entry for entry in used if entry[0] not in _variables_of_the_example()} == set()


def test_variables_of_the_compose_file_are_in_the_example() -> None:
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.worker.yml").read_text()))
    assert wanted == {"REDIS_PASSWORD", "POSTGRES_PASSWORD"}
    assert wanted <= _variables_of_the_example()


def test_the_example_loads_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in _variables_of_the_example():
        monkeypatch.delenv(name, raising=False)
    example = Settings(_env_file=ROOT / ".env.example")
    assert example.redis == "redis://127.0.0.1:6379/0"
    defaults = Settings(_env_file=None)
    uncommented = tmp_path / "all"
    uncommented.write_text(re.sub(r"^# (?=[A-Z][A-Z0-9_]+=)", "", EXAMPLE, flags=re.M))
    everything = Settings(_env_file=uncommented)
    for name in ("lease", "window_span", "jobs_retention", "kafka_partitions", "snooze_limit", "health_host"):
        assert getattr(everything, name) == getattr(defaults, name), f"the example shows another {name}"
