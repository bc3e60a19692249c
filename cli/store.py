"""`streams db` and `streams tracking`: the store itself, and the process that fills it."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import click
from sqlalchemy import Engine

from cli.options import Age, of_organization, on_database
from streams.codecs import lifecycle_codec
from streams.queues import LIFECYCLE_TOPIC, TRACKING_DEAD_LETTER_TOPIC
from streams.settings import settings
from tracking import migrate
from tracking.database import DatabaseUnavailable, TrackingError, open_database
from tracking.rebuild import EventsGone, rebuild
from tracking.retention import Retention, cleanup_old_executions
from tracking.sink import Sink, SinkSettings
from tracking.states import Status
from tracking.store import Store

log = logging.getLogger(__name__)


def url_of(given: str | None) -> str:
    """Return the URL given, or else the settings'."""
    if given:
        return given
    known = settings().database_url
    if known is None:
        raise click.ClickException("DATABASE_URL is not set; give it, or --database-url")
    return known.get_secret_value()


@contextmanager
def sentences() -> Iterator[None]:
    """Say the store's errors in one sentence."""
    try:
        yield
    except TrackingError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def opened(url: str | None) -> Iterator[Engine]:
    """Give the database of a command, and its errors as sentences."""
    with sentences():
        database = open_database(url_of(url))
        try:
            yield database
        finally:
            database.dispose()


@click.group()
def db() -> None:
    """Make and keep the tables of the store."""


@db.command()
@on_database
def upgrade(database_url: str | None) -> None:
    """Bring the tables to this version; safe to run at once from many places."""
    with sentences():
        revision = migrate.upgrade(url_of(database_url))
    click.echo(f"The database is at revision {revision}.")


@db.command()
@on_database
def current(database_url: str | None) -> None:
    """Say which revision the tables have; exit 1 when it is not that of this version."""
    with opened(database_url) as database:
        migrate.require_current(database)
    click.echo(f"The database is at revision {migrate.head()}, as this version needs.")


@db.command()
@on_database
@of_organization
@click.option(
    "--completed", type=Age(), default="30d", show_default=True, help="Age of completed jobs to go."
)
@click.option(
    "--cancelled", type=Age(), default="30d", show_default=True, help="Age of cancelled jobs to go."
)
@click.option("--dead", type=Age(), default="90d", show_default=True, help="Age of dead jobs to go.")
@click.option("--events", type=Age(), default="90d", show_default=True, help="Age of events to go.")
@click.option("--dry-run", is_flag=True, help="Only count.")
def cleanup(
    database_url: str | None,
    organization: str | None,
    completed: timedelta,
    cancelled: timedelta,
    dead: timedelta,
    events: timedelta,
    dry_run: bool,
) -> None:
    """Delete finished jobs and events that are older than their retention. Unfinished jobs stay."""
    ages = {Status.COMPLETED: completed, Status.CANCELLED: cancelled, Status.DEAD: dead}
    with opened(database_url) as database:
        gone = cleanup_old_executions(database, organization, Retention(ages, events), dry_run=dry_run)
    verb = "Would delete" if dry_run else "Deleted"
    click.echo(f"{verb} {gone.jobs:,} jobs and {gone.events:,} events.")


@click.group(invoke_without_command=True)
@on_database
@click.pass_context
def tracking(ctx: click.Context, database_url: str | None) -> None:
    """Run the sink: lifecycle events into the store, until SIGTERM."""
    ctx.obj = database_url
    if ctx.invoked_subcommand is not None:
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with opened(database_url) as database:
        _require_tables(database)
        sink = _sink(database)
        sink.run()
    log.info("settled %d records", sink.written)


@tracking.command("rebuild")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--lossy", is_flag=True, help="Go on although the topic no longer holds all events.")
@click.pass_context
def rebuild_(ctx: click.Context, yes: bool, lossy: bool) -> None:
    """Empty the store and fill it again from the beginning of the lifecycle topic."""
    with opened(ctx.obj) as database:
        migrate.require_current(database)
        if not yes:
            click.confirm("Empty job_executions and lifecycle_events and read all events again?", abort=True)
        try:
            read = rebuild(Store(database), _sink(database), settings().kafka, LIFECYCLE_TOPIC, lossy=lossy)
        except EventsGone as gone:
            raise click.ClickException(f"{gone}; with --lossy those jobs are given up") from gone
    click.echo(f"Read {read:,} records again.")


def _require_tables(database: Engine) -> None:
    try:
        migrate.require_current(database)
    except DatabaseUnavailable as error:
        # It may come up later than this process: the sink waits for it.
        log.warning("%s", error)


def _sink(database: Engine) -> Sink:
    """Return a sink that ends, its transaction through, on SIGTERM and SIGINT."""
    sink = Sink(
        Store(database),
        lifecycle_codec(settings()),
        settings().kafka,
        SinkSettings(LIFECYCLE_TOPIC, TRACKING_DEAD_LETTER_TOPIC),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sink.stop())
    return sink
