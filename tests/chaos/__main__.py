"""`python -m tests.chaos --fault kill-worker --seed 7`: play faults against real processes and print the verdicts."""

import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from rich.console import Console

from tests.chaos.faults import Fault, load
from tests.chaos.run import HISTORIES, play
from tests.chaos.scene import Theatre
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended on the way out
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
        played = _side_by_side(chosen, seed, histories, stacks)
    else:
        played = _played(_programme(chosen, seed, soak_minutes), histories)
    reports: list[Report] = []
    if not as_json:
        console.print(f"seed {seed}, histories in {histories}")
    for report in played:
        reports.append(report)
        word = "ok" if report.holds else "VIOLATED"
        print(report.as_json() if as_json else f"{report.fault} {word} in {report.seconds:.0f} s", flush=True)
    if not as_json:
        draw(reports, console)
    sys.exit(0 if all(report.holds for report in reports) else 1)


def _side_by_side(chosen: list[Fault], seed: int, histories: Path, stacks: int) -> Iterator[Report]:
    """Play the faults in so many processes of their own, each with its stack, and yield reports as they come."""
    shares: list[list[Fault]] = [[] for _ in range(stacks)]
    for fault in sorted(chosen, key=lambda one: -one.seconds):
        min(shares, key=lambda share: sum(one.seconds for one in share)).append(fault)
    # The longest ones are the heaviest: side by side they would starve each other.
    for share in shares[1::2]:
        share.reverse()
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def follow(player: subprocess.Popen[str]) -> None:
        assert player.stdout is not None
        for line in player.stdout:
            lines.put(line)
        lines.put(None)

    players = []
    try:
        for share in filter(None, shares):
            faults = [argument for fault in share for argument in ("--fault", fault.name)]
            command = [sys.executable, "-m", "tests.chaos", *faults, "--seed", str(seed), "--json"]
            player = subprocess.Popen([*command, "--to", str(histories)], stdout=subprocess.PIPE, text=True)
            players.append(player)
            threading.Thread(target=follow, args=(player,), daemon=True).start()
        missing = {fault.name for fault in chosen}
        for _ in players:
            while (line := lines.get()) is not None:
                report = Report.from_json(line)
                missing.discard(report.fault)
                yield report
        for name in sorted(missing):
            yield Report(name, seed, 0.0, error="its player ended before")
    finally:
        for player in players:
            player.terminate()
            player.wait(60)


def _played(programme: Iterable[tuple[Fault, int]], histories: Path) -> Iterator[Report]:
    """Yield the report on each fault; one stack serves all of them."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.chmod(0o711)  # PostgreSQL may run as another account, and must be able to reach its data
    theatre = Theatre(folder / "stack")
    try:
        for fault, seed in programme:
            yield play(theatre, fault, seed, histories)
    finally:
        theatre.close()
        folder.rmdir()


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
