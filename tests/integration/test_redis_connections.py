"""How Redis is reached: TLS, and the master that Sentinels name, through a fail-over."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis.exceptions import RedisError

import devstack
from devstack.process import Process, free_port
from devstack.valkey import server_binary
from ratelimit import AdmissionUnavailable, Candidate, Done, Duplicate, Mark, Run
from ratelimit.connection import MasterPool, pool_of
from ratelimit.control import Listener, RedisControl
from ratelimit.redis import RedisAdmission

pytestmark = pytest.mark.stack

SECOND = timedelta(seconds=1)
PASSWORD, SENTINEL_PASSWORD = "s3:cr/et@", "watch me"
IN_URL = "s3%3Acr%2Fet%40"


# -- TLS: the server of the tests' wheel is built without it, so it ends before the server ---------------


@dataclass
class Tls:
    """Where the server is reached over TLS, and the file with the authority that signed its certificate."""

    port: int
    authority: Path


@pytest.fixture
async def tls(stack: devstack.Stack, tmp_path: Path) -> AsyncIterator[Tls]:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    host, _, port = stack.redis.rpartition("@")[2].partition("/")[0].partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_copy(reader, to_server), _copy(from_server, writer))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    yield Tls(listening.sockets[0].getsockname()[1], tmp_path / "authority.pem")
    listening.close()
    await listening.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
    except (ConnectionError, ssl.SSLError):
        return
    finally:
        writer.close()


async def test_tls_is_spoken_and_certificates_are_checked(stack: devstack.Stack, tls: Tls) -> None:
    user = stack.redis.partition("//")[2].rpartition("@")[0]
    trusting = RedisAdmission.from_url(
        f"rediss://{user}@localhost:{tls.port}/0?ssl_ca_certs={tls.authority}", prefix="test-tls"
    )
    [run] = await trusting.admit([Candidate("acme:1", "")])
    assert isinstance(run, Run)
    assert await trusting.settle([Mark("acme:1", run.token, Done())]) == [True]
    await trusting.close()
    # Neither one whose authority is unknown nor one for another name is trusted.
    for address in (f"localhost:{tls.port}/0", f"127.0.0.1:{tls.port}/0?ssl_ca_certs={tls.authority}"):
        other = RedisAdmission.from_url(f"rediss://{user}@{address}")
        with pytest.raises(AdmissionUnavailable, match=r"(?i)certificate"):
            await other.ping()
        await other.close()
    with Redis.from_url(stack.redis) as redis:
        assert redis.delete("{test-tls}:job:acme:1") == 1


# -- Sentinel -------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A master, its replica, and the Sentinel that watches them; all on this machine."""

    master: Process
    master_port: int
    replica_port: int
    sentinel_port: int

    @property
    def url(self) -> str:
        gone = free_port()
        return (
            f"redis+sentinel://worker:{IN_URL}@127.0.0.1:{gone},127.0.0.1:{self.sentinel_port}/main/2"
            f"?sentinel_password={SENTINEL_PASSWORD.replace(' ', '%20')}"
        )


def _answers(port: int, password: str, question: str, wanted: bytes) -> None:
    """Return once the answer to a command has a text in it."""
    deadline = time.monotonic() + 30
    with Redis(port=port, password=password) as redis:
        while True:
            try:
                answer = redis.execute_command(*question.split())
                if wanted in repr(answer).encode():
                    return
            except RedisError:
                pass
            assert time.monotonic() < deadline, f"{question}: no {wanted!r} in {answer!r}"
            time.sleep(0.05)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    ports = [free_port() for _ in range(3)]
    processes = []
    for port in ports[:2]:
        folder = tmp_path / str(port)
        folder.mkdir()
        lines = [
            f"port {port}", "bind 127.0.0.1", 'save ""', f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"',
            f'user worker on ">{PASSWORD}" ~* &* +@all', "repl-diskless-sync-delay 0",
        ]  # fmt: skip
        if port != ports[0]:
            lines.append(f"replicaof 127.0.0.1 {ports[0]}")
        (folder / "conf").write_text("\n".join(lines) + "\n")
        processes.append(Process(lambda: [server_binary(), "conf"], folder / "log", cwd=folder))
    folder = tmp_path / "sentinel"
    folder.mkdir()
    (folder / "conf").write_text(
        f"port {ports[2]}\nbind 127.0.0.1\n"
        f'requirepass "{SENTINEL_PASSWORD}"\n'
        f"sentinel monitor main 127.0.0.1 {ports[0]} 1\n"
        f'sentinel auth-pass main "{PASSWORD}"\n'
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
    )
    sentinel = Process(lambda: [server_binary(), "conf", "--sentinel"], folder / "log", cwd=folder)
    try:
        for process in processes:
            process.start()
        _answers(ports[0], PASSWORD, "ROLE", b"%d" % ports[1])
        sentinel.start()
        _answers(ports[2], SENTINEL_PASSWORD, "SENTINEL REPLICAS main", b"%d" % ports[1])
        yield Watched(processes[0], *ports)
    finally:
        for process in (sentinel, *processes):
            process.stop()


async def test_the_master_that_a_sentinel_names_is_used_and_the_next_one_after_it_fails(
    watched: Watched,
) -> None:
    admission = RedisAdmission.from_url(watched.url)
    control = RedisControl.from_url(watched.url)
    [run] = await admission.admit([Candidate("acme:1", "")])
    assert isinstance(run, Run)
    assert await admission.settle([Mark("acme:1", run.token, Done())]) == [True]
    await control.say({"limit:rate:queue=emails": "1/s"}, None)
    with Redis(port=watched.master_port, password=PASSWORD, db=2) as redis:
        assert redis.exists("{streams}:job:acme:1")
        redis.set("last", "write")  # WAIT is about what was written before by its own connection
        assert redis.wait(1, 10_000) == 1

    watched.master.kill()
    deadline, refused = time.monotonic() + 30, 0
    while True:
        asked = time.monotonic()
        try:
            [answer] = await admission.admit([Candidate("acme:1", "")])
            break
        except AdmissionUnavailable:
            refused += 1
            assert time.monotonic() - asked < 2.5, "it answers within its deadline, whoever is the master"
            assert time.monotonic() < deadline, "no new master was found"
            await asyncio.sleep(0.05)
    assert refused, "the fail-over takes a while"
    assert answer == Duplicate(), "the new master knows what the old one did"
    assert [said.name for said in await Listener(control).news()] == ["limit:rate:queue=emails"]
    with Redis(port=watched.replica_port, password=PASSWORD) as redis:
        role: list[object] = redis.execute_command("ROLE")
        assert role[0] == b"master"
    await control.close()
    await admission.close()


async def test_without_any_sentinel_it_says_so_in_time() -> None:
    admission = RedisAdmission.from_url(f"redis+sentinel://127.0.0.1:{free_port()}/main")
    began = time.monotonic()
    with pytest.raises(AdmissionUnavailable, match="No master found for 'main'"):
        await admission.ping()
    assert time.monotonic() - began < 2.5
    await admission.close()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_sentinel_url_says_everything(scheme: str) -> None:
    url = f"{scheme}+sentinel://me:a%2Fb@one,[::1]:5,three:6/main/7?sentinel_username=s&sentinel_password=p"
    pool = pool_of(url + ("&ssl_ca_certs=/ca.pem" if scheme == "rediss" else ""), SECOND)
    assert isinstance(pool, MasterPool)
    given = pool.connection_kwargs
    assert (pool.service_name, given["username"], given["password"], given["db"]) == ("main", "me", "a/b", 7)
    sentinels = [one.connection_pool for one in pool.sentinel_manager.sentinels]
    assert [(one.connection_kwargs["host"], one.connection_kwargs["port"]) for one in sentinels] == [
        ("one", 26379), ("::1", 5), ("three", 6),
    ]  # fmt: skip
    assert {(one.connection_kwargs["username"], one.connection_kwargs["password"]) for one in sentinels} == {
        ("s", "p")
    }
    tls = [issubclass(one.connection_class, _tls()) for one in (pool, *sentinels)]
    assert tls == [scheme == "rediss"] * 4
    if scheme == "rediss":
        assert {one.connection_kwargs["ssl_ca_certs"] for one in (pool, *sentinels)} == {"/ca.pem"}


def _tls() -> type:
    from redis.asyncio.connection import SSLConnection

    return SSLConnection


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://hunter2@", "redis+sentinel://u:hunter2@host", "redis+sentinel://u:hunter2@a:b/main"],
)
def test_a_wrong_sentinel_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected a URL such as redis\+sentinel://") as error:
        pool_of(url, SECOND)
    assert "hunter2" not in str(error.value)
