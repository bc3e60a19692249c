"""`python -m tests.chaos --fault kill-worker --seed 7`: play faults against real processes and print the verdicts."""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.faults import Fault, load
from tests.chaos.run import HISTORIES, exit_when_terminated, played, side_by_side
from tests.chaos.table import Report, draw


@click.command()
@click.option("--fault", "names", multiple=True, help="Play this fault; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Play the whole catalogue.")
@click.option("--subset", type=click.Choice(["ci"]), help="Play those that every test run plays.")
@click.option("--list", "listed", is_flag=True, help="Print the catalogue.")
@click.option("--seed", type=int, help="Play it as it was played before.")
@click.option("--soak", "soak_minutes", type=float, help="Play faults chosen at random for so many minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per fault instead of a table.")
@click.option(
    "--to", "histories", type=click.Path(path_type=Path), default=HISTORIES, help="Where histories go."
)
@click.option("--stacks", type=click.IntRange(1, 4), default=1, help="Play on so many stacks at once.")
def main(
    names: tuple[str, ...],
    everything: bool,
    subset: str | None,
    listed: bool,
    seed: int | None,
    soak_minutes: float | None,
    as_json: bool,
    histories: Path,
    stacks: int,
) -> None:
    """Play faults against real processes, judge them by the oracle, exit 1 when an invariant is violated."""
    exit_when_terminated()
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
    if stacks > 1 and soak_minutes is None:
        coming = side_by_side(chosen, seed, histories, stacks)
    else:
        coming = played(_programme(chosen, seed, soak_minutes), histories)
    reports: list[Report] = []
    if not as_json:
        console.print(f"seed {seed}, histories in {histories}")
    for report in coming:
        reports.append(report)
        word = "ok" if report.holds else "VIOLATED"
        print(report.as_json() if as_json else f"{report.fault} {word} in {report.seconds:.0f} s", flush=True)
    if not as_json:
        draw(reports, console)
    sys.exit(0 if all(report.holds for report in reports) else 1)


def _programme(chosen: list[Fault], seed: int, soak_minutes: float | None) -> Iterator[tuple[Fault, int]]:
    """Yield what to play with which seed: each once, or by chance for as long as is asked."""
    if soak_minutes is None:
        yield from ((fault, seed) for fault in chosen)
        return
    chance, deadline = random.Random(seed), time.monotonic() + soak_minutes * 60
    while time.monotonic() < deadline:
        yield chance.choice(chosen), chance.randrange(1_000_000)


if __name__ == "__main__":
    main()
