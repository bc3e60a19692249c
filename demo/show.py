"""What the person in front of the terminal sees: steps, a progress bar, tables, and what to try next."""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from demo.checks import Check, Evidence, Spread, flood_and_quiet, missed, spread
from demo.outside import Outside
from demo.workload import Workload
from streams.queues import QUEUES, WEBHOOKS
from tracking.jobs import Job
from tracking.states import Status

WIDTH = 100


class Show:
    """Writes to a terminal, or plainly to whatever else standard output is."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has been shown, in seconds."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show that something is being done, then how long it took or that it failed."""
        began = time.monotonic()
        try:
            with self.console.status(title):
                yield
        except BaseException:
            self.console.print(f"[red]✗[/] {title}")
            raise
        self.console.print(f"[green]✓[/] {title:<{WIDTH - 12}}[dim]{time.monotonic() - began:>7.1f} s[/]")

    def command(self, typed: str, output: str) -> None:
        """Show a command and what it printed."""
        self.console.print(Text(f"  $ {typed}", style="bold"))
        for line in output.splitlines():
            self.console.print(Text(f"    {line}", style="dim"))

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator["Bar"]:
        """Show how many jobs have ended of so many."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=26),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[states]}"),
            TimeElapsedColumn(),
        )
        try:
            with Progress(*columns, console=self.console) as progress:
                yield Bar(progress, title, total)
        except BaseException:
            self.console.print(f"[red]✗[/] {title}")
            raise

    def failed(self, why: str, log: str) -> None:
        """Show why a step failed, and the last lines of the log that tells more."""
        self.console.print(Padding(Text(why), (0, 0, 0, 2), expand=False))
        if log:
            # What a log holds is shown, never obeyed: no colours, no moves of the cursor.
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", log)
            self.console.print(Padding(Text(plain, style="dim"), (1, 0, 1, 2), expand=False))

    def results(self, workload: Workload, evidence: Evidence, checks: Sequence[Check]) -> None:
        """Show the tables."""
        self.console.print()
        self.console.print(_queues(evidence.jobs))
        self.console.print(_organizations(workload, evidence.jobs))
        self._fairness(workload, evidence)
        self.console.print(_expectations(checks))

    def _fairness(self, workload: Workload, evidence: Evidence) -> None:
        flood, quiet = flood_and_quiet(workload, evidence)
        if flood and quiet:
            noisy, _, silent = workload.organizations
            self.console.print(
                f"{noisy} published {len(workload.flood)} webhooks at once: half of them waited "
                f"{_time(flood.p50)} or longer, the last one {_time(flood.longest)}.\n"
                f"{silent} published {len(workload.quiet)} right behind them: the last one waited "
                f"{_time(quiet.longest)}. Organizations take turns."
            )

    def verdict(self, checks: Sequence[Check]) -> None:
        """Show whether every expectation is met, and which is not."""
        sentences = missed(checks)
        if not sentences:
            self.console.print(
                f"[bold green]All {len(checks)} expectations are met[/], {self.seconds:.0f} s after the start."
            )
            return
        self.console.print(f"[bold red]{len(sentences)} of {len(checks)} expectations are not met:[/]")
        for sentence in sentences:
            self.console.print(Text(f"  ✗ {sentence}"))

    def where_to_look(
        self, data: Path, outside: Outside, organization: str, health: Mapping[str, str]
    ) -> None:
        """Show how to look around in what was left running."""
        place = _relative(data)
        commands = {
            "what happened": [
                f". {place}/env.sh",
                f"streams stats --org {organization}",
                f"streams jobs list --org {organization} --limit 20",
                "streams errors",
                "streams workers",
            ],
            "dead letters, and their replay": [
                "streams dlt list",
                "streams replay --queue webhooks --dry-run",
            ],
            "publish a job of your own": [
                f"streams publish webhooks webhook.deliver --org {organization} \\",
                f'  --data \'{{"url": "{outside.url(organization, "hello")}",',
                '           "eventType": "hello", "body": "{}"}\'',
            ],
            "what has reached the outside": [
                f"curl {outside.inspect}/mail",
                f"curl {outside.inspect}/webhooks",
            ],
            "the workers' health": [f"curl {url}   # {name}" for name, url in health.items()],
            "stop it": ["make down" if place == ".run/demo" else f"python -m devstack down --data {place}"],
        }
        self.console.print("\n[bold]It is left running.[/] Look around:")
        for title, lines in commands.items():
            self.console.print(f"\n  [dim]{title}[/]")
            for line in lines:
                self.console.print(Text(f"    {line}"), soft_wrap=True)
        self.console.print(f"\n  Logs are in {place}/logs, files of the organizations in {place}/artifacts.")

    def what_next(self, data: Path) -> None:
        """Show what to try after a run that was stopped."""
        place = _relative(data)
        self.console.print(
            f"\nLogs are in {place}/logs, reports, texts and forecasts in {place}/artifacts.\n"
            "Next: [bold]make demo KEEP=1[/] leaves all of it running and says how to look around;\n"
            "      README.md shows how to write a handler of your own in 15 lines."
        )


class Bar:
    """A progress bar over jobs."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress = progress
        self._id = progress.add_task(title, total=total, states="")

    def update(self, ended: int, states: Mapping[str, int]) -> None:
        """Show how many have ended, and the states that are of interest."""
        told = ", ".join(
            f"{states[name]} {name}" for name in ("running", "retrying", "dead") if states.get(name)
        )
        self._progress.update(self._id, completed=ended, states=told)


def _queues(jobs: Iterable[Job]) -> Table:
    table = _table("Queues")
    table.caption = "died: became a dead letter · waits: from the time it could run until it ran"
    table.caption_justify = "left"
    table.add_column("queue", no_wrap=True)
    for heading in ("completed", "retried", "died", "replayed", "runs p50", "p95", "waits p50", "p95"):
        table.add_column(heading, justify="right")
    by_queue: dict[str, list[Job]] = {queue: [] for queue in QUEUES}
    for job in jobs:
        by_queue[job.queue_name].append(job)
    for queue, of_queue in by_queue.items():
        done = [job for job in of_queue if job.status == Status.COMPLETED]
        table.add_row(
            queue,
            *_counts(of_queue),
            *_times(spread(job.duration_ms for job in done)),
            *_times(spread(job.queue_time_ms for job in done)),
        )
    return table


def _organizations(workload: Workload, jobs: Sequence[Job]) -> Table:
    table = _table("Organizations")
    table.add_column("organization")
    for heading in ("completed", "retried", "died", "replayed", "webhooks wait p50", "p95"):
        table.add_column(heading, justify="right")
    table.add_column("")
    roles = ("floods the webhooks", "is busy on all queues", "is quiet")
    for organization, role in zip(workload.organizations, roles, strict=True):
        own = [job for job in jobs if job.organization_id == organization]
        times = _times(spread(job.queue_time_ms for job in own if job.queue_name == WEBHOOKS.name))
        table.add_row(organization, *_counts(own), *times, Text(role, style="dim"))
    return table


def _counts(jobs: Sequence[Job]) -> list[str]:
    return [
        _count(sum(job.status == Status.COMPLETED for job in jobs)),
        _count(sum(job.attempt > 1 for job in jobs)),
        _count(sum(job.status == Status.DEAD or job.replay_id is not None for job in jobs)),
        _count(sum(job.replay_id is not None for job in jobs)),
    ]


def _expectations(checks: Iterable[Check]) -> Table:
    table = _table("Expectations")
    table.add_column("", width=1)
    table.add_column("", width=WIDTH - 42)
    table.add_column("expected", justify="right", max_width=16)
    table.add_column("found", justify="right", max_width=16)
    for check in checks:
        mark = Text("✓", style="green") if check.met else Text("✗", style="bold red")
        table.add_row(mark, Text(check.what), Text(_plain(check.expected)), Text(_plain(check.found)))
    return table


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _plain(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list() | set():
            return ", ".join(map(_plain, value)) or "none"
        case _:
            return str(value)


def _count(number: int) -> str:
    return str(number) if number else ""


def _times(times: Spread | None) -> tuple[str, str]:
    return (_time(times.p50), _time(times.p95)) if times else ("", "")


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
