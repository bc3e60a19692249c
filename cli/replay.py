"""`streams dlt` and `streams replay`: look at dead letters and send them back."""

import asyncio
from datetime import UTC, datetime, timedelta
from operator import itemgetter

import click

from cli.tables import Answer
from ratelimit.redis import RedisAdmission
from streams import replay as dead_letters
from streams.agents import load
from streams.codecs import codecs, lifecycle_codec
from streams.durations import parse_duration
from streams.lifecycle import Lifecycle
from streams.producer import Producer
from streams.queues import QUEUES
from streams.replay import Letter, Selection
from streams.settings import Settings, known_queue, settings


class Since(click.ParamType):
    """An age such as 2h, or an instant in ISO 8601."""

    name = "age or instant"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.now(UTC) - parse_duration(value)
        except ValueError:
            pass
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"expected an age such as 30m, 2h or 7d, or an ISO 8601 instant, got {value!r}", param, ctx
            )
        return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@click.group()
def dlt() -> None:
    """Look into the dead-letter topics."""


@dlt.command("list")
@click.option("--queue", "queue_name", help="One queue; all when left out.")
@click.option("--org", "organization", help="One organization.")
@click.option("--type", "job_type", help="One job type.")
@click.option("--since", type=Since(), help="Not older than this: 2h, or 2026-01-31T12:00:00Z.")
@click.option(
    "--limit", type=click.IntRange(1), default=100, show_default=True, help="Show the latest so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def list_(
    queue_name: str | None,
    organization: str | None,
    job_type: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List dead letters, the latest last."""
    configuration = settings()
    load(configuration.handler_modules)
    known = codecs(configuration)
    queues = [known_queue(queue_name)] if queue_name else list(QUEUES.values())
    selection = Selection(organization, job_type, None, since)
    found = [
        letter
        for queue in queues
        for letter in dead_letters.letters(configuration, queue, known[queue.name], selection)
    ]
    found.sort(key=lambda letter: letter.failed_at)
    answer = Answer(
        [_facts(letter) for letter in found[-limit:]],
        {heading: itemgetter(name) for heading, name in _COLUMNS.items()},
        "no dead letters",
    )
    answer.show(as_json)
    if not as_json and len(found) > limit:
        click.echo(f"the latest {limit} of {len(found)}")


_COLUMNS = {
    "failed at": "failedAt", "queue": "queue", "organization": "organizationId", "job": "jobId", "type": "jobType",
    "attempt": "attempt", "reason": "reason", "error": "errorMessage", "place": "place",
}  # fmt: skip


def _facts(letter: Letter) -> dict[str, str | None]:
    return {
        "failedAt": letter.failed_at.isoformat(timespec="seconds"),
        "queue": letter.queue.name,
        "organizationId": letter.organization_id,
        "jobId": letter.job_id,
        "jobType": letter.job_type,
        "attempt": letter.text("attempt") or None,
        "reason": letter.text("reason"),
        "errorKind": letter.text("error-kind"),
        "errorMessage": letter.text("error-message"),
        "origin": letter.text("origin"),
        "place": letter.place,
    }


@click.command()
@click.option("--queue", "queue_name", required=True, help="Queue whose dead letters are replayed.")
@click.option("--org", "organization", help="Only those of one organization.")
@click.option("--type", "job_type", help="Only those of one job type.")
@click.option("--job", "job_id", help="Only the one of this job.")
@click.option("--since", type=Since(), help="Only those not older than this: 2h, or 2026-01-31T12:00:00Z.")
@click.option("--reason", default="", help="Why, kept with each job's events.")
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
def replay(
    queue_name: str,
    organization: str | None,
    job_type: str | None,
    job_id: str | None,
    since: datetime | None,
    reason: str,
    dry_run: bool,
) -> None:
    """Send dead letters back to their queue as attempt 1, bytes unchanged.

    Of each job the latest letter counts, and jobs that have completed since are left alone.
    """
    configuration = settings()
    load(configuration.handler_modules)
    queue = known_queue(queue_name)
    codec = codecs(configuration)[queue.name]
    selection = Selection(organization, job_type, job_id, since)
    found = dead_letters.latest(dead_letters.letters(configuration, queue, codec, selection))
    chosen = asyncio.run(_unfinished(configuration, found))
    left = (
        f"; {len(found) - len(chosen)} completed since and are left alone" if len(found) > len(chosen) else ""
    )
    if dry_run or not chosen:
        for letter in chosen:
            click.echo(f"would replay {letter.job_id} {letter.job_type} of {letter.organization_id}")
        click.echo(f"{_count(len(chosen))} of {queue.name} would be replayed{left}")
        return
    producer = Producer(configuration.kafka, delivery_timeout=timedelta(seconds=30))
    try:
        replay_id = dead_letters.replay(
            chosen,
            producer,
            Lifecycle(lifecycle_codec(configuration)),
            reason=reason or "replayed by an operator",
            timeout=timedelta(seconds=31),
        )
    finally:
        producer.close()
    click.echo(f"{_count(len(chosen))} of {queue.name} replayed as {replay_id}{left}")


def _count(letters: int) -> str:
    return "1 dead letter" if letters == 1 else f"{letters} dead letters"


async def _unfinished(configuration: Settings, found: list[Letter]) -> list[Letter]:
    admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
    try:
        return await dead_letters.unfinished(found, admission)
    finally:
        await admission.close()
