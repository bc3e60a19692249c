"""The `streams` command: everything an operator types."""

import os
import sys

import click

from cli import (
    cancel,
    control,
    limits,
    orgs,
    pauses,
    publish,
    replay,
    schemas,
    topics,
    tracking,
    why,
    workers,
)
from streams.errors import StreamsError
from streams.queues import WORKER_TYPES
from streams.settings import check_worker_type, settings


class Sentences(click.Group):
    """A group whose commands end on an error with one sentence and exit code 1, not with a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except StreamsError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=Sentences, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="streams-jobs")
def main() -> None:
    """Publish and cancel jobs, run workers, look at what happened, and rescue what failed."""


@main.command()
@click.option("--type", "worker_type", envvar="WORKER_TYPE", help=f"One of {', '.join(WORKER_TYPES)}.")
def worker(worker_type: str | None) -> None:
    """Run a worker, as `faust -A streams.TYPE worker` does; the type may come from WORKER_TYPE."""
    name = check_worker_type(worker_type or settings().worker_type)
    arguments = [sys.executable, "-m", "faust", "-A", f"streams.{name}", "worker"]
    os.execv(sys.executable, arguments)


MODULES = (
    publish, cancel, why, limits, pauses, orgs, workers, control, topics, tracking, replay, schemas,
)  # fmt: skip
for module in MODULES:
    module.register(main)
