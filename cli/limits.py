"""`streams limits`: how much may run, for whom, and who changed it."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, TypeVar

import click

from cli.control import HEARD_WITHIN, ask, run, show_changes, signed
from cli.tables import Answer
from ratelimit.control import Control, Listener
from ratelimit.redis import RedisAdmission
from streams.agents import load
from streams.delivery import IDENTIFIER
from streams.errors import ConfigError
from streams.jobs import HANDLERS
from streams.limits import gate_name
from streams.rules import (
    ASSIGNED,
    EACH,
    KINDS,
    PLAN,
    RULE,
    Rule,
    Rules,
    Scope,
    allowed_of_text,
    allowed_text,
    check_scope,
    own_rules,
)
from streams.settings import settings

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def limits() -> None:
    """Say how many jobs may run; workers hear of it within two seconds, and nothing has to be restarted."""


@limits.group()
def plan() -> None:
    """Say what organizations of a plan may have; `streams limits assign` gives them one."""


def scoped(command: F) -> F:
    """Add the options that say what a limit holds for."""
    command = click.option("--provider", help=f"Provider behind the handlers; {EACH} for each one.")(command)
    command = click.option("--type", "job_type", help=f"Job type; {EACH} for each one.")(command)
    return click.option("--queue", "queue_name", help=f"Queue; {EACH} for each one.")(command)


def allowing(command: F) -> F:
    """Add the options that say how much is allowed, one for each kind of rule."""
    options = {
        "rate": "Such as 20/s, 100/min, '10/5m burst 3', or none for no limit.",
        "concurrency": "Jobs at a time, on all workers together, or none.",
        "weight": "Share of an organization, or of each of a plan, beside 1 for every other: 0.01 to 100.",
        "backlog": "Unfinished jobs that an organization, or each of a plan, may have, or none.",
    }
    for kind in reversed(KINDS):
        command = click.option(f"--{kind}", help=options[kind])(command)
    return command


def of_kind(command: F) -> F:
    """Add the option that says of which kind the rule is."""
    kinds = click.Choice(KINDS)
    return click.option("--kind", type=kinds, help="Only the rule of this kind; without it, all.")(command)


@limits.command("list")
@click.option("--org", "organization", help="Only what holds for one organization.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(organization: str | None, as_json: bool) -> None:
    """List the limits that hold, and the plans of organizations."""
    rules = ask(_rules)
    found = [
        _row(str(rule.scope), rule.kind, allowed_text(rule.allowed), "operators" if said else "default")
        for rule, said in rules.all()
        if _concerns(rule.scope.organization, organization, rules)
    ]
    found += [
        _row(f"organization={name}", "plan", of, "operators")
        for name, of in sorted(rules.plan_of.items())
        if organization in (None, name)
    ]
    columns = {name: itemgetter(name) for name in ("scope", "kind", "allowed", "by")}
    Answer(found, columns, "no limits").show(as_json)


def _row(scope: str, kind: str, allowed: str, by: str) -> dict[str, str]:
    return {"scope": scope, "kind": kind, "allowed": allowed, "by": by}


def _concerns(stated: str | None, organization: str | None, rules: Rules) -> bool:
    plan_name = PLAN + rules.plan_of.get(organization or "", "")
    return organization is None or stated in (None, EACH, organization, plan_name)


@limits.command("set")
@scoped
@click.option(
    "--org", "organization", help=f"Organization; {EACH} for each one, with an allowance of its own."
)
@allowing
@signed
def set_(
    queue_name: str | None, job_type: str | None, provider: str | None, organization: str | None,
    by: str, **stated: str | None,
) -> None:  # fmt: skip
    """Allow so much in a queue, of a job type, with a provider, for an organization, or where several meet."""
    _say(_scope(queue_name, job_type, provider, organization), stated, by)


@limits.command()
@scoped
@click.option("--org", "organization", help=f"Organization, or {EACH}.")
@of_kind
@signed
def unset(
    queue_name: str | None, job_type: str | None, provider: str | None, organization: str | None,
    kind: str | None, by: str,
) -> None:  # fmt: skip
    """Take back what was set for exactly this scope; what holds by default holds again."""
    _take_back(_scope(queue_name, job_type, provider, organization), kind, by)


@plan.command("set")
@click.argument("name")
@scoped
@allowing
@signed
def plan_set(
    name: str, queue_name: str | None, job_type: str | None, provider: str | None,
    by: str, **stated: str | None,
) -> None:  # fmt: skip
    """Allow so much to each organization of a plan."""
    _say(_plan_scope(name, queue_name, job_type, provider), stated, by)


@plan.command("unset")
@click.argument("name")
@scoped
@of_kind
@signed
def plan_unset(
    name: str, queue_name: str | None, job_type: str | None, provider: str | None,
    kind: str | None, by: str,
) -> None:  # fmt: skip
    """Take back what was set for exactly this scope of a plan."""
    _take_back(_plan_scope(name, queue_name, job_type, provider), kind, by)


@limits.command()
@click.argument("organization")
@click.argument("name", metavar="[PLAN]", required=False)
@signed
def assign(organization: str, name: str | None, by: str) -> None:
    """Give an organization a plan; without PLAN, take its plan away."""
    for identifier in (organization, name):
        if identifier is not None and IDENTIFIER.fullmatch(identifier) is None:
            raise ConfigError(
                f"expected the id of an organization and the name of a plan, got {identifier!r}"
            )
    ask(lambda control: control.say({ASSIGNED + organization: name}, None if name else HEARD_WITHIN, by=by))
    click.echo(f"{organization} has {f'plan {name}' if name else 'no plan'} now")


@limits.command()
@click.argument("provider")
def lift(provider: str) -> None:
    """Admit jobs of a provider again, though it has asked to wait."""

    async def do() -> None:
        configuration = settings()
        admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
        try:
            await admission.lift(gate_name(provider))
        finally:
            await admission.close()

    _scope(None, None, provider, None)
    run(do())
    click.echo(f"jobs of {provider} are admitted again")


@limits.command()
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Show the latest so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def audit(limit: int, as_json: bool) -> None:
    """List who changed which limit, when, from what to what; the latest last."""
    show_changes(limit, as_json, RULE, ASSIGNED)


def _scope(
    queue_name: str | None, job_type: str | None, provider: str | None, organization: str | None
) -> Scope:
    load(settings().handler_modules)
    providers = {handler.provider for handler in HANDLERS.values() if handler.provider}
    stated = {"queue": queue_name, "type": job_type, "provider": provider, "organization": organization}
    if organization not in (None, EACH) and IDENTIFIER.fullmatch(str(organization)) is None:
        raise ConfigError(f"--org takes the id of an organization, or {EACH}, got {organization!r}")
    return check_scope(stated, types=HANDLERS, providers=providers)


def _plan_scope(name: str, queue_name: str | None, job_type: str | None, provider: str | None) -> Scope:
    if IDENTIFIER.fullmatch(name) is None:
        raise ConfigError(f"a plan is named like an organization, got {name!r}")
    whole = _scope(queue_name, job_type, provider, EACH)
    return whole._replace(organization=PLAN + name)


def _say(scope: Scope, stated: Mapping[str, str | None], by: str) -> None:
    try:
        rules = [
            Rule(kind, scope, allowed_of_text(kind, text))
            for kind in KINDS
            if (text := stated[kind]) is not None
        ]
        for rule in rules:
            rule.check()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not rules:
        raise ConfigError(
            f"say how much is allowed: one of {', '.join(f'--{kind}' for kind in KINDS)}, or several"
        )
    values = {rule.name: allowed_text(rule.allowed) for rule in rules}
    ask(lambda control: control.say(values, None, by=by))
    for rule in rules:
        click.echo(f"{rule.scope}: {rule.kind} {allowed_text(rule.allowed)}")


def _take_back(scope: Scope, kind: str | None, by: str) -> None:
    found = [
        rule for rule, said in ask(_rules).all() if said and rule.scope == scope and kind in (None, rule.kind)
    ]
    if not found:
        raise ConfigError(f"nothing was set for {scope}" + (f" of kind {kind}" if kind else ""))
    ask(lambda control: control.say({rule.name: None for rule in found}, HEARD_WITHIN, by=by))
    for rule in found:
        click.echo(f"{scope}: no longer {rule.kind} {allowed_text(rule.allowed)}")


async def _rules(control: Control) -> Rules:
    rules = Rules(own_rules())
    rules.hear(await Listener(control).news())
    return rules
