"""Apache Kafka in KRaft mode, run from its jars: one node is broker and controller."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from devstack.packages import install
from devstack.process import Process, free_port, locked
from devstack.service import StackError

OLDEST_JAVA = 17
_CLUSTER_ID = urlsafe_b64encode(b"streams-devstack").decode().rstrip("=")
_POM = Path(str(files("devstack") / "pom.xml"))
_LOG4J = Path(str(files("devstack") / "log4j2.xml"))
_SETTINGS = files("devstack") / "server.properties"


def kafka(folder: Path, port: int, log_file: Path, proxied: Sequence[int] = ()) -> Process:
    """Return the broker that keeps its data in `folder` and listens on a port of the loopback.

    `proxied` is a second port that it listens on, and the port of the proxy that clients of that one are sent to.
    """

    def prepare() -> Sequence[str]:
        classpath = f"{jars()}/*"
        # A stack lives for minutes: a second compiler and a concurrent collector would cost more CPU than they save.
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
        program = [java(), "-Xms256m", "-Xmx512m", *quick, "-cp", classpath]
        folder.mkdir(parents=True, exist_ok=True)
        # Its own ports are free while it is down.
        controller = free_port(but=(port, *proxied))
        (folder / "server.properties").write_text(_server_properties(port, controller, proxied))
        if not (folder / "log" / "meta.properties").exists():
            format_tool = ["kafka.tools.StorageTool", "format", "--config=server.properties"]
            _run([*program, *format_tool, f"--cluster-id={_CLUSTER_ID}", "--ignore-formatted"], folder)
        settings = [
            f"-Dlog4j2.configurationFile={_LOG4J}",
            "-Dlog4j2.disable.jmx=true",
        ]
        return [*program, *settings, "kafka.Kafka", "server.properties"]

    return Process(prepare, log_file, cwd=folder)


def _server_properties(port: int, controller_port: int, proxied: Sequence[int]) -> str:
    listeners = [f"PLAINTEXT://127.0.0.1:{port}"]
    advertised = list(listeners)
    if proxied:
        own, proxy = proxied
        listeners.append(f"PROXIED://127.0.0.1:{own}")
        advertised.append(f"PROXIED://127.0.0.1:{proxy}")
    listeners.append(f"CONTROLLER://127.0.0.1:{controller_port}")
    return _SETTINGS.read_text() + "\n".join(
        [
            f"controller.quorum.voters=1@127.0.0.1:{controller_port}",
            f"listeners={','.join(listeners)}",
            f"advertised.listeners={','.join(advertised)}",
            "",
        ]
    )


def java() -> str:
    """Return the path of a Java runtime that runs Kafka, installing one where that needs no question."""
    found = _java()
    if found is None:
        install(f"Java {OLDEST_JAVA} or newer", ["openjdk-17-jre-headless", "openjdk-21-jre-headless"])
        found = _java()
    if found is None:
        raise StackError(f"No Java {OLDEST_JAVA} or newer is on PATH or in JAVA_HOME.")
    return found


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    installed = sorted(Path("/usr/lib/jvm").glob("*/bin/java"), reverse=True)
    for candidate in (Path(home, "bin/java") if home else None, shutil.which("java"), *installed):
        if candidate is None or not Path(candidate).exists():
            continue
        answer = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False)
        version = re.search(r'version "(\d+)', answer.stderr)
        if version and int(version[1]) >= OLDEST_JAVA:
            return str(candidate)
    return None


def jars() -> Path:
    """Return the folder of Kafka's jars, fetched once for every state of pom.xml.

    They are kept in the user's cache, and appear there whole or not at all.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streams-jobs"
    folder = cache / f"kafka-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:16]}"
    if not folder.exists():
        with locked(cache / "kafka.lock"):
            if not folder.exists():
                _fetch_jars(folder)
    return folder


def _fetch_jars(folder: Path) -> None:
    java()
    if shutil.which("mvn") is None:
        install("Maven", ["maven"])
    print("Fetching Kafka's jars with Maven, once ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder.parent) as unfinished:
        goal = [
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={unfinished}/jars",
        ]
        _run(["mvn", "-q", "-B", "-f", str(_POM), *goal], folder.parent)
        Path(unfinished, "jars").rename(folder)


def _run(command: Sequence[str], cwd: Path) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise StackError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{done.stdout[-2000:]}"
        )
