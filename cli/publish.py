"""`streams publish`: publish jobs from the command line."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import click
from pydantic import ValidationError

from streams.client import SyncJobs
from streams.delivery import describe
from streams.durations import parse_duration
from streams.errors import BacklogFull, InvalidJob, NotAccepted
from streams.jobs import HANDLERS
from streams.publication import Publication
from streams.settings import known_queue

BATCH = 1000
_LINE_FIELDS = {
    "type", "organizationId", "payload", "jobId", "idempotencyKey", "orderingKey", "priority", "delay", "runAt",
    "maxAttempts",
}  # fmt: skip


@click.command()
@click.argument("queue")
@click.argument("job_type", required=False)
@click.option("--org", "organization", help="Organization that the job belongs to.")
@click.option(
    "--data", help="Payload as JSON, @FILE, or @- for standard input. Without it: NDJSON from there."
)
@click.option("--delay", help="Wait before the job may run, such as 30s or 2h.")
@click.option("--run-at", help="Instant before which the job may not run, ISO 8601 with a time zone.")
@click.option("--priority", type=int, default=5, show_default=True, help="1, the most urgent, to 10.")
@click.option(
    "--key", "idempotency_key", help="Idempotency key: jobs of an organization with one key run once."
)
@click.option("--max-attempts", type=int, help="Override the job type's number of attempts.")
def publish(
    queue: str,
    job_type: str | None,
    organization: str | None,
    data: str | None,
    delay: str | None,
    run_at: str | None,
    priority: int,
    idempotency_key: str | None,
    max_attempts: int | None,
) -> None:
    """Publish one job to QUEUE, or one for each line of standard input, and print the job ids.

    A line is a JSON object: {"type": ..., "organizationId": ..., "payload": {...}} and, where wanted, jobId,
    idempotencyKey, orderingKey, priority, delay, runAt, maxAttempts. JOB_TYPE and --org fill in what lines
    leave out.
    """
    known_queue(queue)
    with SyncJobs() as jobs:
        stated: dict[str, Any] = {
            "type": job_type, "organizationId": organization, "delay": delay, "runAt": run_at, "priority": priority,
            "idempotencyKey": idempotency_key, "maxAttempts": max_attempts,
        }  # fmt: skip
        given = {name: value for name, value in stated.items() if value is not None}
        if data is not None:
            lines: Iterator[tuple[str, dict[str, Any]]] = iter(
                [("--data", {"payload": _json(data), **given})]
            )
        else:
            lines = ((where, {**given, **line}) for where, line in _lines(sys.stdin))
        _send(jobs, queue, lines)


def _send(jobs: SyncJobs, queue: str, lines: Iterator[tuple[str, dict[str, Any]]]) -> None:
    batch: list[Publication] = []
    total = 0
    try:
        for where, line in lines:
            try:
                stated = publication(queue, line)
                jobs.check(stated)
            except InvalidJob as error:
                raise InvalidJob(f"{where}: {error}") from None
            batch.append(stated)
            if len(batch) == BATCH:
                total += _flush(jobs, batch)
    except InvalidJob as error:
        raise InvalidJob(f"{error} ({total} jobs were published before it)") from None
    _flush(jobs, batch)


def _flush(jobs: SyncJobs, batch: list[Publication]) -> int:
    try:
        accepted = jobs.publish_many(batch)
    except (BacklogFull, NotAccepted) as error:
        for job_id in error.accepted:
            click.echo(job_id)
        raise
    for job_id in accepted:
        click.echo(job_id)
    batch.clear()
    return len(accepted)


def publication(queue: str, line: dict[str, Any]) -> Publication:
    """Return the publication that a JSON object states; raises InvalidJob saying what does not fit."""
    unknown = sorted(set(line) - _LINE_FIELDS)
    if unknown:
        raise InvalidJob(f"unknown field {unknown[0]!r}; expected {', '.join(sorted(_LINE_FIELDS))}")
    job_type = line.get("type")
    handler = HANDLERS.get(job_type) if isinstance(job_type, str) else None
    known = sorted(name for name, one in HANDLERS.items() if one.queue.name == queue)
    if handler is None or handler.queue.name != queue:
        raise InvalidJob(f"unknown job type {job_type!r} on {queue}; expected one of {', '.join(known)}")
    try:
        payload = handler.payload.model_validate_json(json.dumps(line.get("payload", {})))
    except ValidationError as error:
        raise InvalidJob(f"the payload does not fit {job_type}: {describe(error)}") from None
    try:
        delay = parse_duration(line["delay"]) if line.get("delay") else None
        run_at = datetime.fromisoformat(line["runAt"]) if line.get("runAt") else None
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidJob(f"delay or runAt: {error}") from None
    return Publication(
        payload,
        line.get("organizationId", ""),
        job_id=line.get("jobId"),
        idempotency_key=line.get("idempotencyKey"),
        ordering_key=line.get("orderingKey"),
        priority=line.get("priority", 5),
        delay=delay,
        run_at=run_at,
        max_attempts=line.get("maxAttempts"),
    )


def _json(data: str) -> Any:
    if data.startswith("@"):
        try:
            data = sys.stdin.read() if data == "@-" else Path(data[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidJob(f"--data: {data[1:]} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidJob(f"--data: {data[1:]} is not UTF-8") from None
    try:
        return json.loads(data)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidJob(f"--data is not JSON: {error}") from None


def _lines(stream: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON object of each line that is not blank, and where it stands."""
    number = 0
    try:
        for number, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            line = json.loads(text)
            if not isinstance(line, dict):
                raise InvalidJob(f"line {number} must be a JSON object, got {type(line).__name__}")
            yield f"line {number}", line
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidJob(f"line {number} is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidJob(f"what follows line {number} is not UTF-8") from None
