"""`streams why`: why a job waits, from live state."""

import asyncio

import click

from cli.tables import json_of
from ratelimit import AdmissionUnavailable, Left
from ratelimit.redis import RedisAdmission
from streams.agents import load
from streams.control import control_of
from streams.reasons import Explanation, allowed_of, explain
from streams.settings import settings
from streams.why import Findings, look


@click.command()
@click.argument("job_id")
@click.option("--org", "organization", required=True, help="Organization that the job belongs to.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def why(job_id: str, organization: str, as_json: bool) -> None:
    """Say why a job waits: what holds it, what goes before it, and when about it starts."""
    load(settings().handler_modules)
    try:
        found = asyncio.run(_look(job_id, organization))
    except AdmissionUnavailable as error:
        raise click.ClickException(str(error)) from error
    told = explain(found)
    if as_json:
        click.echo(json_of(_facts(found, told)))
        return
    for sentence in told.sentences:
        click.echo(sentence)
    if found.limits:
        click.echo("\nLimits that hold for it:")
        for one in found.limits:
            click.echo(f"  {_limit(one)}")


async def _look(job_id: str, organization: str) -> Findings:
    configuration = settings()
    admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
    try:
        async with control_of(configuration) as control:
            return await look(job_id, organization, configuration, control, admission)
    finally:
        await admission.close()


def _limit(one: Left) -> str:
    allowed = allowed_of(one)
    name = f"{one.limit.name} ({allowed})" if allowed else one.limit.name
    if not allowed:
        return f"{name}: open" if one.left else f"{name}: shut until {one.until:%Y-%m-%d %H:%M:%S}Z"
    next_at = "" if one.until is None else f", the next at {one.until:%Y-%m-%d %H:%M:%S}Z at the latest"
    return f"{name}: {one.left} left{next_at}"


def _facts(found: Findings, told: Explanation) -> dict[str, object]:
    return {
        "organizationId": found.organization_id,
        "jobId": found.job_id,
        "status": found.job.status if found.job is not None else None,
        "where": told.where,
        "worker": told.worker,
        "startsAt": told.starts_at,
        "because": list(told.sentences),
        "limits": [
            {"name": one.limit.name, "allowed": allowed_of(one), "left": one.left, "until": one.until}
            for one in found.limits
        ],
        "silent": list(found.answers.silent),
    }
