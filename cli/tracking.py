"""`streams stats|failures|errors|slow|workers|jobs`: what happened. The store itself: `cli.store`."""

import functools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from sqlalchemy import Engine

from cli.options import Age, of_organization, on_database
from cli.replay import Since
from cli.store import opened
from cli.tables import Answer, console, json_of, text_of
from tracking import analytics, jobs
from tracking.database import connected
from tracking.states import Status

_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
_limited = click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)


def _asks(question: Callable[..., Answer]) -> Callable[..., None]:
    """Make a question about a window of time a command: (database, organization, window, ...) to its answer."""

    @on_database
    @of_organization
    @click.option(
        "--since",
        type=Since(),
        default="24h",
        show_default=True,
        help="Not older: 1h, or an ISO 8601 instant.",
    )
    @_as_json
    @functools.wraps(question)
    def command(
        database_url: str | None, organization: str | None, since: datetime, as_json: bool, **others: Any
    ) -> None:
        with opened(database_url) as database:
            answer = question(database, organization, analytics.Window(since, datetime.now(UTC)), **others)
        answer.show(as_json)

    return command


@click.command()
@on_database
@of_organization
@click.option("--since", type=Since(), default="24h", show_default=True, help="Not older: 1h, or an instant.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def stats(database_url: str | None, organization: str | None, since: datetime, as_json: bool) -> None:
    """Count jobs by type and state, and show how long they waited and ran."""
    asked = organization, analytics.Window(since, datetime.now(UTC))
    with opened(database_url) as database, connected(database) as connection:
        overall = analytics.get_overall_statistics(connection, *asked)
        by_type = analytics.get_job_statistics(connection, *asked)
        performance = analytics.get_performance_metrics(connection, *asked)
    if as_json:
        click.echo(json_of({"overall": overall, "by_type": by_type, "performance": performance}))
        return
    if overall.jobs == 0 and not performance:
        click.echo(f"No job was queued since {since:%Y-%m-%d %H:%M} UTC.")
        return
    counts = ", ".join(f"{count:,} {status}" for status, count in overall.by_status.items() if count)
    rate = "" if overall.success_rate is None else f"; {overall.success_rate:.1%} of the finished completed"
    click.echo(f"{overall.jobs:,} jobs of {overall.organizations:,} organizations: {counts}{rate}")
    Answer(
        by_type,
        {
            "type": lambda row: row.job_type,
            "state": lambda row: row.status,
            "jobs": lambda row: row.jobs,
            "attempts": lambda row: row.attempts,
            "average ms": lambda row: row.average_duration_ms,
        },
        "",
    ).draw()
    if performance:
        Answer(performance, _PERFORMANCE, "").draw("Completed: how long they ran and waited, in ms")


_PERFORMANCE: dict[str, Callable[[analytics.PerformanceMetrics], Any]] = {
    "type": lambda row: row.job_type,
    "jobs": lambda row: row.jobs,
    "p50": lambda row: row.duration.p50_ms,
    "p95": lambda row: row.duration.p95_ms,
    "p99": lambda row: row.duration.p99_ms,
    "longest": lambda row: row.duration.max_ms,
    "wait p50": lambda row: row.queue_time.p50_ms,
    "wait p95": lambda row: row.queue_time.p95_ms,
    "wait p99": lambda row: row.queue_time.p99_ms,
    "longest wait": lambda row: row.queue_time.max_ms,
}


@click.command()
@_limited
@_asks
def failures(database: Engine, organization: str | None, window: analytics.Window, limit: int) -> Answer:
    """Show the jobs that are dead, the latest first."""
    found = analytics.get_recent_failures(database, organization, window, limit=limit)
    columns: dict[str, Callable[[jobs.Job], Any]] = {
        "died (UTC)": lambda job: job.finished_at,
        "job": lambda job: job.job_id,
        "organization": lambda job: job.organization_id,
        "type": lambda job: job.job_type,
        "attempts": lambda job: job.attempt,
        "error": lambda job: _first_line(
            f"{job.error_kind}: {job.error_message}" if job.error_kind else job.reason
        ),
    }
    return Answer(found, columns, "No job died in that time.")


@click.command()
@_limited
@_asks
def errors(database: Engine, organization: str | None, window: analytics.Window, limit: int) -> Answer:
    """Group the errors of all attempts, retried or not, by where they were raised."""
    found = analytics.get_error_analysis(database, organization, window, limit=limit)
    columns: dict[str, Callable[[analytics.ErrorPattern], Any]] = {
        "errors": lambda row: row.errors,
        "jobs": lambda row: row.jobs,
        "dead": lambda row: row.dead,
        "kind": lambda row: row.kind,
        "types": lambda row: ", ".join(row.job_types),
        "latest message": lambda row: _first_line(row.example_message),
        "first (UTC)": lambda row: row.first_seen_at,
        "last (UTC)": lambda row: row.last_seen_at,
    }
    return Answer(found, columns, "No attempt failed in that time.")


@click.command()
@_limited
@click.option("--at-least", type=Age(), default="0s", help="Only jobs that ran this long, such as 30s.")
@_asks
def slow(
    database: Engine, organization: str | None, window: analytics.Window, limit: int, at_least: timedelta
) -> Answer:
    """Show the jobs whose last attempt ran longest."""
    found = analytics.get_slow_jobs(database, organization, window, at_least=at_least, limit=limit)
    columns: dict[str, Callable[[jobs.Job], Any]] = {
        "ms": lambda job: job.duration_ms,
        "CPU ms": lambda job: job.cpu_time_ms,
        "waited ms": lambda job: job.queue_time_ms,
        "job": lambda job: job.job_id,
        "organization": lambda job: job.organization_id,
        "type": lambda job: job.job_type,
        "state": lambda job: job.status,
        "worker": lambda job: job.worker_id,
    }
    return Answer(found, columns, "No job that ran so long finished in that time.")


@click.command()
@_asks
def workers(database: Engine, organization: str | None, window: analytics.Window) -> Answer:
    """Show what each worker did, and how many jobs it runs now."""
    found = analytics.get_worker_statistics(database, organization, window)
    columns: dict[str, Callable[[analytics.WorkerStatistics], Any]] = {
        "worker": lambda row: row.worker_id,
        "host": lambda row: row.worker_host,
        "running": lambda row: row.running,
        "completed": lambda row: row.completed,
        "retried": lambda row: row.retried,
        "dead": lambda row: row.dead,
        "average ms": lambda row: row.average_duration_ms,
        "busy s": lambda row: row.busy_ms / 1000,
        "peak MiB": lambda row: row.peak_memory_bytes and row.peak_memory_bytes / 2**20,
        "last seen (UTC)": lambda row: row.last_seen_at,
    }
    return Answer(found, columns, "No worker was seen in that time.")


def _first_line(text: str | None) -> str:
    lines = (text or "").splitlines()
    return lines[0][:160] if lines else ""


@click.group("jobs")
def jobs_group() -> None:
    """Look at single jobs."""


@jobs_group.command("list")
@click.option("--status", type=click.Choice([str(status) for status in Status]))
@click.option("--queue", "queue_name", help="One queue.")
@click.option("--type", "job_type", help="One job type.")
@click.option("--cursor", help="Go on where an earlier page ended.")
@_limited
@_asks
def list_(
    database: Engine,
    organization: str | None,
    window: analytics.Window,
    status: str | None,
    queue_name: str | None,
    job_type: str | None,
    cursor: str | None,
    limit: int,
) -> Answer:
    """List jobs, the latest published first."""
    chosen = jobs.JobFilter(
        organization, Status(status) if status else None, queue_name, job_type, since=window.since
    )
    page = jobs.list_jobs(database, chosen, limit=limit, cursor=cursor)
    if page.next_cursor:
        click.echo(f"There are more: --cursor {page.next_cursor}", err=True)
    columns: dict[str, Callable[[jobs.Job], Any]] = {
        "queued (UTC)": lambda job: job.queued_at,
        "job": lambda job: job.job_id,
        "organization": lambda job: job.organization_id,
        "type": lambda job: job.job_type,
        "state": lambda job: job.status,
        "attempt": lambda job: f"{job.attempt}/{job.max_attempts}",
        "ms": lambda job: job.duration_ms,
    }
    return Answer(page.jobs, columns, "No job fits.")


@jobs_group.command()
@click.argument("job_id")
@on_database
@of_organization
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def show(job_id: str, database_url: str | None, organization: str | None, as_json: bool) -> None:
    """Show one job and everything that happened to it."""
    with opened(database_url) as database:
        found = jobs.get_job(database, job_id, organization)
    if found is None:
        raise click.ClickException(
            f"there is no job {job_id}" + (f" of {organization}" if organization else "")
        )
    if as_json:
        click.echo(json_of(found))
        return
    facts = [(name, value) for name, value in _facts(found.job) if value is not None]
    Answer(facts, {"": lambda fact: fact[0], " ": lambda fact: fact[1]}, "").draw()
    columns: dict[str, Callable[[jobs.JobEvent], Any]] = {
        "at (UTC)": lambda event: event.at,
        "event": lambda event: event.kind,
        "attempt": lambda event: event.attempt,
        "worker": lambda event: event.worker_id,
        "ms": lambda event: event.duration_ms,
        "why": lambda event: _first_line(event.error_message or event.reason),
    }
    Answer(found.events, columns, "").draw("Events")
    if found.job.error_stack:
        console().print(text_of(found.job.error_stack))


def _facts(job: jobs.Job) -> Iterator[tuple[str, Any]]:
    for name in job.__dataclass_fields__:
        value = getattr(job, name)
        if name in ("input", "output"):
            yield name, None if value is None else json_of(value)
        elif name not in ("job_name", "error_stack"):
            yield name, value
