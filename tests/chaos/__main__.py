"""`python -m tests.chaos --fault kill-worker --seed 7`: play faults against real processes and print the verdicts."""

import random
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.faults import Fault, load
from tests.chaos.run import HISTORIES, play
from tests.chaos.scene import Theatre
from tests.chaos.table import draw


@click.command()
@click.option("--fault", "names", multiple=True, help="Play this fault; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Play the whole catalogue.")
@click.option("--subset", type=click.Choice(["ci"]), help="Play those that every test run plays.")
@click.option("--list", "listed", is_flag=True, help="Print the catalogue.")
@click.option("--seed", type=int, help="Play it as it was played before.")
@click.option("--soak", "soak_minutes", type=float, help="Play faults chosen at random for so many minutes.")
def main(
    names: tuple[str, ...],
    everything: bool,
    subset: str | None,
    listed: bool,
    seed: int | None,
    soak_minutes: float | None,
) -> None:
    """Play faults against real processes, judge them by the oracle, exit 1 when an invariant is violated."""
    catalogue = load()
    console = Console(width=max(110, Console().width))
    if listed:
        for one in catalogue.values():
            console.print(
                f"{one.name:26}{one.seconds:4} s {'ci' if one.ci else '  '}  {one.summary}", markup=False
            )
        return
    if unknown := set(names) - set(catalogue):
        raise click.UsageError(f"no fault {', '.join(sorted(unknown))}; see --list")
    chosen = [catalogue[name] for name in names]
    if everything or soak_minutes:
        chosen = list(catalogue.values())
    elif subset:
        chosen = [one for one in catalogue.values() if one.ci]
    if not chosen:
        raise click.UsageError(
            "say which: --fault NAME, --subset ci, --all or --soak MINUTES; --list prints them"
        )
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    console.print(f"seed {seed}, histories in {HISTORIES}")
    sys.exit(0 if run(chosen, seed, console, soak_minutes) else 1)


def run(chosen: list[Fault], seed: int, console: Console, soak_minutes: float | None = None) -> bool:
    """Play the chosen faults, one after the other, and return whether every invariant held."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account, and must be able to reach its data
    theatre = Theatre(folder / "stack")
    reports = []
    try:
        for fault, one_seed in _programme(chosen, seed, soak_minutes):
            report = play(theatre, fault, one_seed)
            reports.append(report)
            console.print(f"{fault.name} {'ok' if report.holds else 'VIOLATED'} in {report.seconds:.0f} s")
    finally:
        theatre.close()
        folder.rmdir()
    draw(reports, console)
    return all(report.holds for report in reports)


def _programme(chosen: list[Fault], seed: int, soak_minutes: float | None):  # type: ignore[no-untyped-def]
    if soak_minutes is None:
        yield from ((fault, seed) for fault in chosen)
        return
    chance, deadline = random.Random(seed), time.monotonic() + soak_minutes * 60
    while time.monotonic() < deadline:
        yield chance.choice(chosen), chance.randrange(1_000_000)


if __name__ == "__main__":
    main()
