"""`streams topics`: create and check the topics."""

import asyncio

import click

from streams import topics as kafka_topics
from streams.settings import settings


@click.group()
def topics() -> None:
    """Create and check the topics that the pipeline needs."""


@topics.command()
def ensure() -> None:
    """Create what is missing and mend what differs; print each difference. Refuses to shrink a topic."""
    found = kafka_topics.ensure(settings())
    for difference in found:
        click.echo(f"mended  {difference}")
    count = len(kafka_topics.expected(settings()))
    click.echo(
        f"{count} topics are as they should be" + (f", {len(found)} differences mended" if found else "")
    )


@topics.command()
def verify() -> None:
    """Exit 1 and say so when a topic is missing or differs from the settings."""
    asyncio.run(kafka_topics.verify(settings()))
    click.echo(f"{len(kafka_topics.expected(settings()))} topics are as they should be")
