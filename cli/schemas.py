"""Write the schema files from the payload models, and check that they fit."""

from collections.abc import Iterator

import click

from schemas import Schema, files
from schemas.canonical import fingerprint
from schemas.compatibility import Incompatible
from schemas.derive import NotDerivable, job_schema
from streams import agents
from streams.jobs import HANDLERS
from streams.queues import QUEUES


def schema_of(queue: str) -> Schema:
    """Return the schema that the payload models of a queue's job types make; needs `agents.load()` before."""
    return job_schema(queue, {h.job_type: h.payload for h in HANDLERS.values() if h.queue.name == queue})


@click.group("schemas")
def schemas() -> None:
    """Schemas of the topics: from the payload models to schemas/avro."""


@schemas.command()
def write() -> None:
    """Write schemas/avro from the models, and keep every version in its history.

    A change with which earlier records could not be read is refused, with the field and the reason.
    """
    for name, schema in _all():
        try:
            changed = files.write(name, schema)
        except Incompatible as error:
            raise click.ClickException(f"{name} is left as it was: {error}") from None
        click.echo(f"{name:<22} {fingerprint(schema).hex()}  {'written' if changed else 'unchanged'}")


@schemas.command()
def check() -> None:
    """Check that schemas/avro is what the models say and reads all earlier versions; prints fingerprints."""
    problems = []
    for name, schema in _all():
        click.echo(f"{name:<22} {fingerprint(schema).hex()}")
        problems += files.problems(name, schema)
    if problems:
        raise click.ClickException("\n".join(problems))


def _all() -> Iterator[tuple[str, Schema]]:
    agents.load()
    for queue in QUEUES:
        try:
            yield queue, schema_of(queue)
        except NotDerivable as error:
            raise click.ClickException(f"{queue}: {error}") from None
    yield files.LIFECYCLE, files.current(files.LIFECYCLE)
