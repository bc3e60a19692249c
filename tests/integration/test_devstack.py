"""The local stack against its promises: it answers, keeps its addresses and data, and ends only what it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

import devstack
from devstack.process import Process, is_free

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(os.environ.get("STACK") == "docker", reason="about processes of this machine"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[devstack.Stack]:
    """A second stack beside the one all tests share; pytest's folder is closed to other accounts."""
    with pytest.MonkeyPatch.context() as environment:
        for variable in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "DATABASE_URL"):
            environment.delenv(variable, raising=False)
        stack = devstack.start(tmp_path_factory.mktemp("devstack") / "own")
        yield stack
        stack.stop(clean=True)
        assert not stack.data_dir.exists()


def _plain(url: str) -> str:
    return url.replace("postgresql+psycopg2://", "postgresql://")


def _query(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(_plain(url), connect_timeout=5)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def _pid(stack: devstack.Stack, name: str) -> int:
    runner = stack.service(name).runner
    assert isinstance(runner, Process)
    assert runner.pid is not None
    return runner.pid


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def test_two_stacks_run_side_by_side(stack: devstack.Stack, own: devstack.Stack) -> None:
    assert not set(stack.environment().values()) & set(own.environment().values())
    for running in (stack, own):
        with Redis.from_url(running.redis) as client:
            assert client.ping()
        assert _query(running.postgres, "select 1") == [(1,)]


def test_kafka_keeps_records_and_its_address_through_a_crash(own: devstack.Stack) -> None:
    admin = AdminClient({"bootstrap.servers": own.kafka})
    admin.create_topics([NewTopic("kept", 1)])["kept"].result(10)
    producer = Producer({"bootstrap.servers": own.kafka})
    producer.produce("kept", b"before")
    assert producer.flush(10) == 0

    own.service("kafka").kill()
    assert is_free(int(own.kafka.rpartition(":")[2]))
    own.service("kafka").start()

    settings = {"bootstrap.servers": own.kafka, "group.id": "g", "auto.offset.reset": "earliest"}
    consumer = Consumer(settings)
    consumer.subscribe(["kept"])
    message = consumer.poll(20)
    consumer.close()
    assert message is not None
    assert message.value() == b"before"


def test_kafka_refuses_unknown_topics(own: devstack.Stack) -> None:
    assert (
        AdminClient({"bootstrap.servers": own.kafka})
        .list_topics("misspelt", timeout=10)
        .topics["misspelt"]
        .error
    )
    assert "misspelt" not in AdminClient({"bootstrap.servers": own.kafka}).list_topics(timeout=10).topics


def test_redis_keeps_keys_through_stop_and_start(own: devstack.Stack) -> None:
    with Redis.from_url(own.redis) as client:
        client.set("kept", "yes")
    own.service("redis").stop()
    with Redis.from_url(own.redis, retry=None) as client, pytest.raises(RedisConnectionError):
        client.ping()
    own.service("redis").start()
    with Redis.from_url(own.redis) as client:
        assert client.get("kept") == b"yes"


def test_redis_wants_the_password(own: devstack.Stack) -> None:
    anonymous = own.redis.split("//")[0] + "//" + own.redis.split("@")[1]
    with Redis.from_url(anonymous) as client, pytest.raises(Exception, match=r"[Aa]uth"):
        client.ping()


def test_postgres_keeps_rows_through_a_crash(own: devstack.Stack) -> None:
    _query(own.postgres, "create table kept (n int)")
    _query(own.postgres, "insert into kept values (7)")
    own.service("postgres").kill()
    own.service("postgres").start()
    assert _query(own.postgres, "select n from kept") == [(7,)]


def test_postgres_is_utf8_and_supported(own: devstack.Stack) -> None:
    [(encoding, version)] = _query(
        own.postgres, "select current_setting('server_encoding'), current_setting('server_version_num')::int"
    )
    assert encoding == "UTF8"
    assert 150000 <= int(str(version)) < 190000


def test_a_paused_service_does_not_answer_until_it_is_resumed(own: devstack.Stack) -> None:
    redis = own.service("redis")
    redis.pause()
    try:
        with (
            Redis.from_url(own.redis, socket_timeout=0.2, retry=None) as client,
            pytest.raises(RedisTimeoutError),
        ):
            client.ping()
        assert redis.running
    finally:
        redis.resume()
    redis.wait_until_ready()


def test_a_paused_postgres_freezes_open_connections(own: devstack.Stack) -> None:
    connection = psycopg2.connect(_plain(own.postgres))
    try:
        runner = own.service("postgres").runner
        assert isinstance(runner, Process)
        backend = connection.info.backend_pid
        own.service("postgres").pause()
        _wait_until(lambda: "State:\tT" in Path(f"/proc/{backend}/status").read_text())
        own.service("postgres").resume()
        _wait_until(lambda: "State:\tT" not in Path(f"/proc/{backend}/status").read_text())
    finally:
        own.service("postgres").resume()
        connection.close()


def test_starting_again_takes_over_what_runs(own: devstack.Stack) -> None:
    before = {name: _pid(own, name) for name in own.services}
    again = devstack.start(own.data_dir, outlive_caller=True)
    assert {name: _pid(again, name) for name in again.services} == before
    assert again.environment() == own.environment()


def test_a_further_program_gets_the_addresses_and_ends_with_the_stack(own: devstack.Stack) -> None:
    program = own.run("printer", ["sh", "-c", "echo at $REDIS_URL; exec sleep 600"])
    log = own.data_dir / "logs" / "printer.log"
    _wait_until(lambda: f"at {own.redis}" in log.read_text())
    found = devstack.find(own.data_dir)
    assert found is not None
    assert _pid(found, "printer") == _pid(own, "printer")
    program.stop()
    assert not program.running


def test_a_program_that_ends_at_once_shows_its_log(own: devstack.Stack) -> None:
    def never() -> None:
        raise ConnectionError("not yet")

    with pytest.raises(devstack.StackError, match="the reason"):
        own.run("broken", ["sh", "-c", "echo the reason; exit 3"], ready=never)


def test_data_stay_where_the_database_account_can_reach_them(own: devstack.Stack) -> None:
    folder = own.data_dir / "postgres"
    if os.geteuid() != 0:
        assert not folder.is_symlink()
        return
    assert folder.is_symlink(), "pytest's folder is closed to others, so the data cannot lie in it"
    assert folder.resolve().owner() in ("postgres", "nobody")


def test_the_stack_ends_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib, devstack\n"
        "stack = devstack.start(pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:1",
        "DATABASE_URL": "postgresql://elsewhere/x",
    }
    environment.pop("REDIS_URL", None)
    caller = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, env=environment
    )
    with caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"ready\n"
        found = devstack.find(tmp_path / "s")
        assert found is not None
        redis = found.service("redis")
        assert redis.running
        caller.send_signal(signal.SIGKILL)
    _wait_until(lambda: not redis.running)


def test_the_command_line_starts_shows_and_ends_a_stack(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": "elsewhere:1",
        "DATABASE_URL": "postgresql://elsewhere/x",
    }
    environment.pop("REDIS_URL", None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "devstack", *arguments, "--data", str(tmp_path / "s")]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    missing = run("env")
    assert missing.returncode == 1
    assert "start one with: python -m devstack up" in missing.stderr
    assert run("up").returncode == 0
    assert "redis            runs" in run("status").stdout
    exported = run("env").stdout
    assert "export KAFKA_BOOTSTRAP_SERVERS=elsewhere:1" in exported
    # A shell that holds the stack's own addresses must still be able to end it.
    environment["REDIS_URL"] = exported.split("export REDIS_URL=")[1].splitlines()[0].strip("'")
    assert run("down", "--clean").stdout.startswith("Stopped redis.")
    assert not (tmp_path / "s").exists()
    del environment["REDIS_URL"]
    assert run("down").stdout.startswith("No stack was started")
