"""Options that several commands have."""

from datetime import timedelta

import click

from streams.durations import parse_duration

on_database = click.option("--database-url", envvar="DATABASE_URL", help="Store to use.  [env: DATABASE_URL]")
of_organization = click.option("--org", "organization", help="One organization; all when left out.")


class Age(click.ParamType):
    """A duration such as 30d."""

    name = "duration"

    def convert(
        self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)
