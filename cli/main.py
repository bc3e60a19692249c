"""The `streams` command: everything an operator types."""

import os
import pkgutil
import sys

import click

from streams.errors import StreamsError
from streams.queues import WORKER_TYPES
from streams.settings import check_worker_type, settings

COMMANDS = {
    "publish": "cli.publish:publish",
    "cancel": "cli.cancel:cancel",
    "why": "cli.why:why",
    "limits": "cli.limits:limits",
    "pause": "cli.pauses:pause",
    "resume": "cli.pauses:resume",
    "paused": "cli.pauses:paused",
    "kill": "cli.pauses:kill",
    "kills": "cli.pauses:kills",
    "orgs": "cli.orgs:orgs",
    "alive": "cli.workers:alive",
    "drain": "cli.workers:drain",
    "audit": "cli.control:audit",
    "topics": "cli.topics:topics",
    "stats": "cli.tracking:stats",
    "failures": "cli.tracking:failures",
    "errors": "cli.tracking:errors",
    "slow": "cli.tracking:slow",
    "workers": "cli.tracking:workers",
    "jobs": "cli.tracking:jobs_group",
    "db": "cli.store:db",
    "tracking": "cli.store:tracking",
    "dlt": "cli.replay:dlt",
    "replay": "cli.replay:replay",
    "schemas": "cli.schemas:schemas",
}
"""Where each command is; only that of the one that is typed is imported, as all together take a second."""


class Commands(click.Group):
    """A group that imports its commands as they are asked for.

    They end on an error with one sentence and exit code 1, not with a traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(pkgutil.resolve_name(COMMANDS[cmd_name]))
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except StreamsError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
