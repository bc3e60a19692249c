"""`streams alive` and `streams drain`: which workers live, and let one of them end in peace."""

from datetime import timedelta
from operator import attrgetter

import click

from cli.control import ask, run, signed
from cli.options import Age
from cli.tables import Answer
from ratelimit.redis import RedisAdmission
from streams.errors import ConfigError
from streams.live import HEARD_FOR, Drain, LiveWorker, living
from streams.settings import settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def alive(as_json: bool) -> None:
    """List the workers that live; one that died without a word is listed for 15 seconds more."""
    columns = {"id": attrgetter("id"), "type": attrgetter("type")}
    Answer(_living(), columns, "no worker lives").show(as_json)


@click.command()
@click.argument("worker_id")
@click.option(
    "--grace", type=Age(), default="1h", show_default=True, help="How long what runs may take to end."
)
@signed
def drain(worker_id: str, grace: timedelta, by: str) -> None:
    """Let a worker hand over its partitions, finish what runs, and end with exit code 0.

    WORKER_ID as `streams alive` lists it, or TYPE/WORKER_ID where several share one.
    """
    found = _living()
    meant = [one for one in found if worker_id in (one.id, one.name)]
    if len(meant) != 1:
        those = ", ".join(one.name for one in found) or "none"
        what = f"{len(meant)} workers are called" if meant else "no worker lives that is called"
        raise ConfigError(f"{what} {worker_id!r}; those that live: {those}")
    said = Drain(grace, by)
    ask(lambda control: control.say({said.name_for(meant[0].name): said.text()}, HEARD_FOR, by=by))
    click.echo(f"{meant[0].name} was told to end; what runs has {grace} to end")


def _living() -> list[LiveWorker]:
    async def answer() -> list[LiveWorker]:
        configuration = settings()
        admission = RedisAdmission.from_url(configuration.redis, prefix=configuration.redis_prefix)
        try:
            return await living(admission)
        finally:
            await admission.close()

    return run(answer())
