"""`streams cancel`: end jobs wherever they are."""

import sys

import click

from cli.tables import json_of
from streams.client import SyncJobs
from streams.control import Cancellation
from streams.errors import InvalidJob
from tracking.states import FINAL, Status


@click.command()
@click.argument("job_ids", metavar="[JOB_ID]...", nargs=-1)
@click.option("--org", "organization", required=True, help="Organization that the jobs belong to.")
@click.option("--reason", default="", help="Why, kept with each job's events.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def cancel(job_ids: tuple[str, ...], organization: str, reason: str, as_json: bool) -> None:
    """Cancel jobs that wait, anywhere, or run; without JOB_ID, those of standard input, one a line.

    What has completed by then stays completed. A cancelled job may be published again under another id.
    """
    wanted = job_ids or tuple(line.strip() for line in sys.stdin if line.strip())
    if not wanted:
        raise InvalidJob("no job id was given, neither as an argument nor on standard input")
    with SyncJobs() as jobs:
        for found in jobs.cancel(*wanted, organization_id=organization, reason=reason):
            click.echo(json_of(_facts(found)) if as_json else sentence(found))


def _facts(found: Cancellation) -> dict[str, object]:
    return {
        "organizationId": found.organization_id,
        "jobId": found.job_id,
        "state": found.state,
        "told": found.told,
    }


def sentence(found: Cancellation) -> str:
    """Return what became of a cancel, for people."""
    job = f"{found.job_id} of {found.organization_id}"
    if not found.asked:
        return f"{job}: all workers are told; the store was not asked, so whether there is such a job is not known"
    if found.state is None:
        return f"{job}: all workers are told, but the store knows no such job"
    if found.state in FINAL:
        return f"{job}: was {found.state} already"
    if found.told:
        return f"{job}: cancelled, it was {found.state}"
    if found.state is Status.RUNNING:
        return f"{job}: it was running, and its worker ends it"
    return f"{job}: all workers are told; the broker did not take the event, so the worker that meets it will tell"
