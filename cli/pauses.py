"""`streams pause`, `resume`, `kill` and what holds: keep jobs from beginning, on every worker."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import click

from cli.control import HEARD_WITHIN, ask, signed
from cli.options import Age
from cli.tables import Answer
from ratelimit.control import Control, Listener
from streams.agents import load
from streams.delivery import IDENTIFIER
from streams.errors import ConfigError
from streams.jobs import HANDLERS
from streams.kills import MOST, Kill, Kills
from streams.pauses import Pause, Pauses
from streams.rules import EACH, Scope, check_scope
from streams.selectors import InvalidSelector, check_selector
from streams.settings import settings

F = TypeVar("F", bound=Callable[..., Any])


def scoped(command: F) -> F:
    """Add the options that say what is paused."""
    for name, parameter, what in (
        ("--org", "organization", "Organization."),
        ("--provider", "provider", "Provider behind the handlers."),
        ("--type", "type", "Job type."),
        ("--queue", "queue", "Queue."),
    ):
        command = click.option(name, parameter, help=f"{what} Several options: where they meet.")(command)
    return command


@click.command()
@scoped
@click.option("--for", "lasts", type=Age(), help="End by itself after so long, such as 2h.")
@click.option("--reason", default="", help="Why, kept with the pause.")
@signed
def pause(lasts: timedelta | None, reason: str, by: str, **stated: str | None) -> None:
    """Let no job begin of a queue, type, provider or organization; what runs goes on."""
    paused = Pause(_scope(stated), datetime.now(UTC), by, reason)
    ask(lambda control: control.say({paused.name: paused.text()}, lasts, by=by))
    click.echo(f"{paused.scope}: paused" + (f" for {lasts}" if lasts else ""))


@click.command()
@scoped
@signed
def resume(by: str, **stated: str | None) -> None:
    """End the pause of exactly this scope; other pauses that cover the same jobs go on."""
    scope = _scope(stated)
    known = ask(_pauses).known.values()
    found = next((one for one in known if one.scope == scope), None)
    if found is None:
        held = "; ".join(sorted(str(one.scope) for one in known)) or "nothing"
        raise ConfigError(f"{scope} is not paused; paused: {held}")
    name = found.name
    ask(lambda control: control.say({name: None}, HEARD_WITHIN, by=by))
    click.echo(f"{scope}: goes on")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def paused(as_json: bool) -> None:
    """List the pauses that hold, the longest first."""
    found = sorted(ask(_pauses).known.values(), key=attrgetter("since"))
    _show(found, ("scope", "since", "until", "by", "reason"), "nothing is paused", as_json)


@click.command()
@click.argument("selector", required=False)
@click.option("--reason", help="Why, kept with each dead letter; required with SELECTOR.")
@click.option("--lift", metavar="ID", help="Let jobs run again that a kill switch matches.")
@signed
def kill(selector: str | None, reason: str | None, lift: str | None, by: str) -> None:
    """Make every job that matches SELECTOR and has not begun a dead letter, until it is lifted.

    Such as: 'type == "email.send" and payload.template == "welcome"'
    """
    if (selector is None) == (lift is None):
        raise ConfigError("say either which jobs, by a selector, or which kill switch to --lift")
    known = ask(_kills).known
    if lift is not None:
        _lift(lift, known, by)
        return
    if not reason:
        raise ConfigError("say why with --reason: it is the reason of each dead letter")
    if len(known) >= MOST:
        raise ConfigError(f"{MOST} kill switches hold already, which each job is asked for; lift some")
    load(settings().handler_modules)
    assert selector is not None
    try:
        check_selector(selector, HANDLERS.values())
        made = Kill.of(secrets.token_hex(4), selector, since=datetime.now(UTC), by=by, reason=reason)
    except InvalidSelector as error:
        raise ConfigError(str(error)) from None
    ask(lambda control: control.say({made.name: made.text()}, None, by=by))
    click.echo(f"kill switch {made.id}: jobs that match are dead letters from now on")


def _lift(kill_id: str, known: dict[str, Kill], by: str) -> None:
    ids = {one.id: name for name, one in known.items()}
    if kill_id not in ids:
        raise ConfigError(f"no kill switch {kill_id!r} holds; those that do: {', '.join(ids) or 'none'}")
    ask(lambda control: control.say({ids[kill_id]: None}, HEARD_WITHIN, by=by))
    click.echo(f"kill switch {kill_id}: lifted")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def kills(as_json: bool) -> None:
    """List the kill switches that hold, the oldest first."""
    found = sorted(ask(_kills).known.values(), key=attrgetter("since"))
    _show(found, ("id", "selector", "since", "by", "reason"), "no kill switch holds", as_json)


def _show(found: list[Any], names: tuple[str, ...], nothing: str, as_json: bool) -> None:
    rows = [{name: _cell(getattr(one, name)) for name in names} for one in found]
    Answer(rows, {name: itemgetter(name) for name in names}, nothing).show(as_json)


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, Scope) else value


def _scope(stated: dict[str, str | None]) -> Scope:
    load(settings().handler_modules)
    if EACH in stated.values():
        raise ConfigError(f"a pause names what it stops; {EACH} is for limits")
    if not any(stated.values()):
        raise ConfigError("say what: --queue, --type, --provider, --org, or several of them")
    organization = stated["organization"]
    if organization is not None and IDENTIFIER.fullmatch(organization) is None:
        raise ConfigError(f"--org takes the id of an organization, got {organization!r}")
    providers = {handler.provider for handler in HANDLERS.values() if handler.provider}
    scope = check_scope(stated, types=HANDLERS, providers=providers)
    meant = Pause(scope, datetime.now(UTC), "")
    if not any(meant.covers(one, organization or "") for one in HANDLERS.values()):
        raise ConfigError(f"no job can be of {scope}")
    return scope


async def _pauses(control: Control) -> Pauses:
    pauses = Pauses()
    pauses.hear(await Listener(control).news(), datetime.now(UTC))
    return pauses


async def _kills(control: Control) -> Kills:
    kills = Kills()
    kills.hear(await Listener(control).news())
    return kills
