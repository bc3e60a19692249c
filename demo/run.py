"""The demonstration, step by step: start everything, publish, wait, repair, replay, gather what happened."""

import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.request import urlopen

from confluent_kafka import Producer
from sqlalchemy import Engine

import devstack
from demo import inputs
from demo.checks import Check, Evidence, checks
from demo.outside import Outside
from demo.show import Bar, Show
from demo.workload import FLAKY, GARBAGE, GONE, Organizations, Workload, line_of, plan
from devstack.process import Process, free_port
from streams.agents import load
from streams.client import SyncJobs
from streams.codecs import codecs
from streams.errors import StreamsError
from streams.queues import EMAILS, QUEUES, WORKER_TYPES, Queue
from streams.replay import Letter, Selection, letters
from streams.settings import Settings, load_settings
from tracking.analytics import Window, get_overall_statistics
from tracking.database import TrackingError, open_database
from tracking.jobs import Job, JobFilter, list_jobs

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
READY_WITHIN = timedelta(seconds=60)
WORKED_WITHIN = timedelta(seconds=150)
REPLAYED_WITHIN = timedelta(seconds=60)
POLL_SECONDS = 0.1
LOG_LINES = 15


class StepFailed(Exception):
    """A step could not be done; `log` holds the last lines of what tells more."""

    def __init__(self, why: str, log: str = "") -> None:
        super().__init__(why)
        self.log = log


EXPECTED_ERRORS = (StepFailed, devstack.StackError, StreamsError, TrackingError)
"""What a step may fail with; anything else is a bug of the demonstration."""


class Demonstration:
    """One run with a stack of its own in a folder; `keep` lets the stack outlive this process."""

    def __init__(self, data: Path, show: Show, *, keep: bool) -> None:
        self.data = data.resolve()
        self.show = show
        self.keep = keep
        self.organizations = Organizations.of_run(secrets.token_hex(2))
        self.health: dict[str, str] = {}
        self._began = datetime.now(UTC)
        self._stack: devstack.Stack | None = None

    # -- the steps --------------------------------------------------------------------------------------

    def run(self) -> list[Check]:
        """Do all of it and return what was expected and what was found; raises one of EXPECTED_ERRORS."""
        step = self.show.step
        with step("Start Kafka, Redis and PostgreSQL"):
            self._start_stack()
        with step("Create topics and tables (streams topics ensure, streams db upgrade)"):
            self._commands(["topics", "ensure"], ["db", "upgrade"])
        with step("Start a mail server and a receiver of webhooks"):
            outside = self._start_outside()
        with step("Start four workers (faust -A streams.primary worker, ...) and streams tracking"):
            self._start_workers()
            workload = self._plan(outside)
            self._await(self._healthy, READY_WITHIN, "the workers to answer GET /health")
        with step(f"Publish {len(list(workload))} jobs, and {len(GARBAGE)} records that are none"):
            self._publish(workload)
        database = open_database(os.environ["DATABASE_URL"])
        try:
            with self.show.progress("Jobs that have ended", workload.finished_before_replay()) as bar:
                self._await_jobs(database, workload.finished_before_replay(), WORKED_WITHIN, bar)
            self._repair(workload, outside)
            self._replay()
            expected = workload.completed().total()
            with self.show.progress("Jobs that have completed", expected) as bar:
                self._await_jobs(database, expected, REPLAYED_WITHIN, bar, dead=False)
            with step("Gather what happened, in the store and outside"):
                evidence = self._gather(database, outside)
        finally:
            database.dispose()
        found = checks(workload, evidence)
        self.show.results(workload, evidence, found)
        return found

    def stop(self) -> None:
        """End what this run started."""
        stack = self._stack or devstack.find(self.data)
        if stack is not None:
            stack.stop()

    def say_where_to_look(self) -> None:
        """Show how to look around in what keeps running."""
        outside = Outside.at(self.data / "outside.json")
        self.show.where_to_look(self.data, outside, self.organizations.busy, self.health)

    # -- start ------------------------------------------------------------------------------------------

    def _start_stack(self) -> None:
        marker = self.data / "demonstration"
        earlier = devstack.find(self.data)
        if earlier is not None and (self.data / "stack.json").exists():
            if not marker.exists():
                raise StepFailed(
                    f"{self.data} holds a stack of something else; give another folder with --data"
                )
            earlier.stop(clean=True)
        self.data.mkdir(parents=True, exist_ok=True)
        marker.touch()
        self._stack = devstack.start(self.data, outlive_caller=self.keep)
        self._set(self._stack.environment())
        self._set(
            {
                "ARTIFACT_DIR": str(self.data / "artifacts"),
                "MAIL_PROVIDER": "smtp",
                "OCR_PROVIDER": "local",
                "AI_PROVIDER": "local",
                "WEBHOOK_SIGNING_KEY": secrets.token_hex(32),
                # The receiver is on this machine, where webhooks do not go otherwise.
                "WEBHOOK_ALLOW_PRIVATE": "1",
                "STRIPE_WEBHOOK_SECRET": f"whsec_{secrets.token_hex(16)}",
            }
        )

    def _set(self, variables: dict[str, str]) -> None:
        """Set variables for this process and those it starts, and keep them for a shell to read."""
        os.environ.update(variables)
        file = self.data / "env.sh"
        file.touch(mode=0o600)
        with file.open("a") as script:
            script.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())

    @property
    def _running(self) -> devstack.Stack:
        assert self._stack is not None
        return self._stack

    @property
    def _settings(self) -> Settings:
        return load_settings()

    def _command(self, *arguments: str, given: str | None = None) -> str:
        """Run a `streams` command and return what it printed; raises StepFailed when it fails."""
        ended = subprocess.run(
            [str(PROGRAMS / "streams"), *arguments],
            cwd=ROOT, input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            said = (ended.stderr or ended.stdout).splitlines()[-LOG_LINES:]
            raise StepFailed(
                f"streams {shlex.join(arguments)} ended with exit code {ended.returncode}", "\n".join(said)
            )
        return ended.stdout

    def _commands(self, *commands: list[str]) -> list[str]:
        """Run `streams` commands at the same time and return what each printed."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda arguments: self._command(*arguments), commands))

    def _start_outside(self) -> Outside:
        addresses = self.data / "outside.json"
        self._running.run("outside", [sys.executable, "-m", "demo.outside", str(addresses)], cwd=ROOT)
        self._await(addresses.exists, READY_WITHIN, "the mail server and the receiver to listen")
        outside = Outside.at(addresses)
        self._set({"SMTP_URL": outside.smtp})
        for name in FLAKY:
            outside.fail(self.organizations.busy, name, status=500, times=2)
        outside.fail(self.organizations.busy, GONE, status=410)
        return outside

    def _start_workers(self) -> None:
        for worker in WORKER_TYPES:
            port = str(free_port())
            self.health[worker] = f"http://127.0.0.1:{port}/health"
            command = [str(PROGRAMS / "faust"), "-A", f"streams.{worker}", "worker"]
            self._running.run(worker, command, env={"HEALTH_PORT": port}, cwd=ROOT)
        self._running.run("tracking", [str(PROGRAMS / "streams"), "tracking"], cwd=ROOT)
        self._set({"PATH": f"{PROGRAMS}:{os.environ['PATH']}"})

    def _plan(self, outside: Outside) -> Workload:
        load()
        secret = os.environ["STRIPE_WEBHOOK_SECRET"]
        return plan(self.organizations, outside.webhooks, secret, datetime.now(UTC))

    def _healthy(self) -> bool:
        try:
            for url in self.health.values():
                with urlopen(url, timeout=2):
                    pass
        except OSError:
            return False
        return True

    # -- work -------------------------------------------------------------------------------------------

    def _publish(self, workload: Workload) -> None:
        with SyncJobs(self._settings) as jobs:
            jobs.publish_many([job.publication for job in workload.jobs])
            jobs.publish_many([job.publication for job in workload.flood])
            jobs.publish_many([job.publication for job in workload.quiet])
        self._produce_garbage()
        lines = "\n".join(_json(line_of(job)) for job in workload.lines)
        self._command("publish", EMAILS.name, given=lines)
        assert workload.report is not None
        line = line_of(workload.report)
        data = self.data / "report.json"
        data.write_text(_json(line["payload"]))
        owner = str(line["organizationId"])
        self._command("publish", "reports", "report.generate", "--org", owner, "--data", f"@{data}")

    def _produce_garbage(self) -> None:
        """Write bytes that are no job in front of the quiet organization's e-mails."""
        producer = Producer({**self._settings.kafka, "partitioner": "murmur2_random", "acks": "all"})
        for value in GARBAGE:
            producer.produce(EMAILS.topic, value, self.organizations.quiet.encode())
        if producer.flush(10):
            raise StepFailed("the broker did not take the bytes that are no job within 10 s")

    def _await_jobs(
        self, database: Engine, count: int, within: timedelta, bar: Bar, *, dead: bool = True
    ) -> None:
        """Wait until so many jobs have ended, as the store tells; what is missing at the end, the checks say."""

        def reached() -> bool:
            states = self._states(database)
            ended = states["completed"] + (states["dead"] if dead else 0)
            bar.update(ended, states)
            return ended >= count

        self._wait(reached, within)

    def _states(self, database: Engine) -> dict[str, int]:
        states: dict[str, int] = {}
        for organization in self.organizations:
            found = get_overall_statistics(database, organization, self._window)
            for name, number in found.by_status.items():
                states[name] = states.get(name, 0) + number
        return states

    @property
    def _window(self) -> Window:
        return Window(self._began - timedelta(minutes=1), datetime.now(UTC) + timedelta(minutes=1))

    def _repair(self, workload: Workload, outside: Outside) -> None:
        with self.show.step(f"Repair: upload {len(workload.missing)} missing invoices, take webhooks again"):
            for number in workload.missing:
                inputs.upload_invoice(self.organizations.busy, number)
            outside.fix(self.organizations.busy, GONE)

    def _replay(self) -> None:
        """Replay the dead letters of both queues with the command an operator types, dry run first."""
        owner = self.organizations.busy
        for option in (["--dry-run"], ["--reason", "repaired"]):
            commands = [
                ["replay", "--queue", queue, "--org", owner, *option]
                for queue in ("document-processing", "webhooks")
            ]
            for typed, output in zip(commands, self._commands(*commands), strict=True):
                self.show.command(shlex.join(["streams", *typed]), output)

    # -- afterwards -------------------------------------------------------------------------------------

    def _gather(self, database: Engine, outside: Outside) -> Evidence:
        jobs: list[Job] = []
        for organization in self.organizations:
            jobs += list_jobs(database, JobFilter(organization), limit=10_000).jobs
        return Evidence(
            jobs=jobs,
            letters=self._dead_letters(),
            mail=outside.mail(),
            webhooks=outside.webhooks_taken(),
            artifacts=self.data / "artifacts",
        )

    def _dead_letters(self) -> list[Letter]:
        settings = self._settings
        known = codecs(settings)

        def of(queue: Queue) -> list[Letter]:
            found = letters(settings, queue, known[queue.name], Selection())
            return [letter for letter in found if letter.organization_id in self.organizations]

        with ThreadPoolExecutor() as pool:
            return [letter for found in pool.map(of, QUEUES.values()) for letter in found]

    # -- waiting ----------------------------------------------------------------------------------------

    def _await(self, reached: Callable[[], bool], within: timedelta, what: str) -> None:
        if not self._wait(reached, within):
            logs = "\n".join(self._log_tail(name) for name in self._programs)
            raise StepFailed(f"waited {within.total_seconds():g} s in vain for {what}", logs)

    def _wait(self, reached: Callable[[], bool], within: timedelta) -> bool:
        """Wait until something is reached and tell whether it was in time; raises StepFailed when a program ends."""
        deadline = time.monotonic() + within.total_seconds()
        while not reached():
            for name in self._programs:
                if not self._running.service(name).running:
                    raise StepFailed(f"{name} has ended too early", self._log_tail(name))
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    @property
    def _programs(self) -> list[str]:
        return list(self._running.services)

    def _log_tail(self, name: str) -> str:
        runner = self._running.service(name).runner
        assert isinstance(runner, Process)
        return runner.log_tail(LOG_LINES)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
