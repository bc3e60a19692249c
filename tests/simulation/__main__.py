"""Run the worlds of many seeds, or one seed with its story: `python -m tests.simulation --seeds 1000`."""

import argparse
import sys

from tests.simulation.plan import WEIGHTS
from tests.simulation.run import explore, show


def main() -> int:
    """Return 0 when no invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--only", choices=WEIGHTS, help="let this go wrong, eight times, and nothing else")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell all that happened")
    parser.add_argument(
        "--job", help="with --trace: only what names this job, by number or id, and the faults"
    )
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return show(chosen.seed, chosen.only, trace=chosen.trace, job=chosen.job)
    return explore(chosen.first, chosen.seeds, chosen.only)


if __name__ == "__main__":
    sys.exit(main())
