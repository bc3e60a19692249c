"""`python -m devstack up|down|status|env`: the local stack from the command line."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from devstack.service import StackError
from devstack.stack import VARIABLES, Stack, find, start

_data = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".run/dev"),
    show_default=True,
    help="Folder of the stack's data, logs and state; each folder is a stack of its own.",
)
_TITLES = {"kafka": "Kafka", "redis": "Redis", "postgres": "PostgreSQL"}


@click.group(help="Kafka, Redis and PostgreSQL on this machine, for development and tests.")
def main() -> None: ...


@main.command(help="Start what does not run yet, and leave it running in the background.")
@_data
def up(data: Path) -> None:
    stack = start(data, outlive_caller=True)
    _print_addresses(stack)
    option = "" if data == Path(".run/dev") else f" --data {shlex.quote(str(data))}"
    click.echo(f"Data and logs are in {data}")
    click.echo(f'Use it:   eval "$(python -m devstack env{option})"')
    click.echo(f"Stop it:  python -m devstack down{option}    (--clean removes the data)")


@main.command(help="End the stack's own processes.")
@_data
@click.option("--clean", is_flag=True, help="Remove the data folder as well.")
def down(data: Path, clean: bool) -> None:
    stack = find(data)
    if stack is None:
        click.echo(f"No stack was started in {data}.")
        return
    running = [name for name, service in stack.services.items() if service.running]
    stack.stop(clean=clean)
    click.echo(f"Stopped {', '.join(running) or 'nothing, as nothing ran'}.")
    if clean:
        click.echo(f"Removed {data}.")


@main.command(help="Show what runs; exit with 1 if a service does not.")
@_data
def status(data: Path) -> None:
    stack = _found(data)
    _print_addresses(stack)
    for name, service in stack.services.items():
        click.echo(f"{name:<16} {'runs' if service.running else 'does not run'}")
    if not all(service.running for name, service in stack.services.items() if name in VARIABLES):
        sys.exit(1)


@main.command(help="Print shell commands that set the addresses of the services.")
@_data
def env(data: Path) -> None:
    for variable, address in _found(data).environment().items():
        click.echo(f"export {variable}={shlex.quote(address)}")


@main.command(hidden=True, help="End the stack when standard input closes.")
@_data
def guard(data: Path) -> None:
    sys.stdin.read()
    stack = find(data)
    if stack is not None:
        stack.stop()


def _found(data: Path) -> Stack:
    stack = find(data)
    if stack is None:
        raise StackError(
            f"No stack was started in {data}; start one with: python -m devstack up --data {data}"
        )
    return stack


def _print_addresses(stack: Stack) -> None:
    for name, title in _TITLES.items():
        click.echo(f"{title:<11} {getattr(stack, name)}")


def _run(command: Callable[..., Any]) -> None:
    try:
        command(prog_name="python -m devstack")
    except StackError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _run(main)
