"""`streams orgs`: how organizations stand now, on all workers together."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from operator import attrgetter

import click

from cli.tables import Answer, Cell, json_of
from ratelimit import AdmissionUnavailable
from ratelimit.redis import RedisAdmission
from streams.answers import TOP
from streams.control import control_of
from streams.settings import known_queue, settings
from streams.standings import OTHERS
from streams.top import Row, Top
from streams.top import top as ask_all

WATCH_EVERY_S = 2.0


@click.group()
def orgs() -> None:
    """Look at organizations as they stand on the workers now."""


@orgs.command()
@click.option("--queue", "queue_name", help="Only one queue.")
@click.option(
    "--limit", type=click.IntRange(1, TOP), default=20, show_default=True, help="Show the first so many."
)
@click.option("--watch", is_flag=True, help="Ask again every two seconds until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def top(queue_name: str | None, limit: int, watch: bool, as_json: bool) -> None:
    """List the organizations that use most of the slots, what waits of each, and its share against its weight's."""
    if queue_name is not None:
        known_queue(queue_name)
    _show(_ask(queue_name, limit), as_json)
    with suppress(KeyboardInterrupt):
        while watch:
            time.sleep(WATCH_EVERY_S)
            found = _ask(queue_name, limit)
            if not as_json:
                click.clear()
            _show(found, as_json)


def _ask(queue_name: str | None, limit: int) -> Top:
    async def ask() -> Top:
        configuration = settings()
        admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
        try:
            async with control_of(configuration) as control:
                return await ask_all(control, admission, most=limit, queue_name=queue_name)
        finally:
            await admission.close()

    try:
        return asyncio.run(ask())
    except AdmissionUnavailable as error:
        raise click.ClickException(str(error)) from error


def _show(found: Top, as_json: bool) -> None:
    if as_json:
        for row in found.rows:
            click.echo(json_of(asdict(row)))
    else:
        columns: dict[str, Callable[[Row], Cell]] = {
            "organization": _name,
            "running": attrgetter("running"),
            "queued": attrgetter("queued"),
            "limited": attrgetter("limited"),
            "skipped": attrgetter("skipped"),
            "slot s/min": attrgetter("slot_seconds"),
            "share %": lambda row: 100 * row.share,
            "by weight %": lambda row: 100 * row.fair_share,
        }
        Answer(found.rows, columns, "no organization has anything on the workers that live").show(False)
    for worker in found.silent:
        click.echo(f"{worker} did not answer; what it has is missing", err=True)


def _name(row: Row) -> str:
    return f"{row.organizations} others" if row.organization_id == OTHERS else row.organization_id
