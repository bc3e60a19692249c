"""Write the schema files from the payload models, and check that they fit."""

from collections.abc import Iterator
from pathlib import Path

import click

from schemas import Schema, files
from schemas.canonical import fingerprint
from schemas.compatibility import Incompatible
from streams import agents
from streams.codecs import schema_of
from streams.queues import QUEUES
from streams.settings import settings

_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=files.DIRECTORY,
    help="Where the files are, when not in schemas/avro.",
)


@click.group("schemas")
def schemas() -> None:
    """Schemas of the topics: from the payload models, those of HANDLER_MODULES too, to schemas/avro."""


@schemas.command()
@_directory
def write(directory: Path) -> None:
    """Write the schemas from the models, and keep every version in their history.

    A change with which earlier records could not be read is refused, with the field and the reason.
    """
    for name, schema in _all():
        try:
            changed = files.write(name, schema, directory)
        except Incompatible as error:
            raise click.ClickException(f"{name} is left as it was: {error}") from None
        click.echo(f"{name:<22} {fingerprint(schema).hex()}  {'written' if changed else 'unchanged'}")


@schemas.command()
@_directory
def check(directory: Path) -> None:
    """Check that the files are what the models say and read all earlier versions; prints fingerprints."""
    problems = []
    for name, schema in _all():
        click.echo(f"{name:<22} {fingerprint(schema).hex()}")
        problems += files.problems(name, schema, directory)
    if problems:
        raise click.ClickException("\n".join(problems))


def _all() -> Iterator[tuple[str, Schema]]:
    agents.load(settings().handler_modules)
    for queue in QUEUES.values():
        yield queue.name, schema_of(queue)
    yield files.LIFECYCLE, files.current(files.LIFECYCLE)
