"""What commands share that say something to all workers, and `streams audit`: who said what."""

import asyncio
import getpass
import socket
from collections.abc import Callable, Coroutine
from datetime import timedelta
from operator import itemgetter
from typing import Any, TypeVar

import click

from cli.tables import Answer
from ratelimit import AdmissionUnavailable
from ratelimit.control import CHANGES_KEPT, Change, Control
from streams.control import control_of
from streams.settings import settings

HEARD_WITHIN = timedelta(days=1)
"""How long what is taken back is kept, for workers to hear of it."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def signed(command: F) -> F:
    """Add the option that says who it is."""
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    return click.option("--by", default=who, show_default="you", help="Who says it, kept for the audit.")(
        command
    )


def run(work: Coroutine[None, None, T]) -> T:
    """Run what asks Redis; ends in one sentence when that cannot answer."""
    try:
        return asyncio.run(work)
    except AdmissionUnavailable as error:
        raise click.ClickException(str(error)) from error


def ask(question: Callable[[Control], Coroutine[None, None, T]]) -> T:
    """Return what the channel to all workers answers."""

    async def answer() -> T:
        async with control_of(settings()) as control:
            return await question(control)

    return run(answer())


def show_changes(limit: int, as_json: bool, *prefixes: str) -> None:
    """Print who said what, when, and what was said before, of names with a prefix; the latest last."""
    changes: list[Change] = ask(lambda control: control.changes(CHANGES_KEPT))
    meant = [one for one in changes if not prefixes or one.name.startswith(prefixes)]
    rows = [
        {
            "at": one.at.isoformat(timespec="seconds"),
            "by": one.by,
            "what": one.name,
            "was": one.was,
            "now": one.now,
        }
        for one in meant[-limit:]
    ]
    columns = {name: itemgetter(name) for name in ("at", "by", "what", "was", "now")}
    Answer(rows, columns, "no changes").show(as_json)


@click.command()
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Show the latest so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def audit(limit: int, as_json: bool) -> None:
    """List who set limits, paused, killed or drained what, when; the latest last."""
    show_changes(limit, as_json)
