"""What ordering keys promise, looked for in what ran when."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tests.simulation.jobs import PASSING
from tests.simulation.ledger import Grant
from tests.simulation.plan import Planned, identity_of

if TYPE_CHECKING:
    from tests.simulation.world import Execution


def out_of_order(
    line: Sequence[Planned],
    runs: Mapping[int, Sequence["Execution"]],
    grants: Mapping[str, Sequence[Grant]],
    now: float,
) -> Iterator[str]:
    """Object to jobs of one ordering key, given in their order, that ran at the same time or in another order.

    What still runs where its lease was lost is excused: nothing can stop a worker that stands still.
    """
    for index, first in enumerate(line):
        earliest = min(runs[first.number], key=lambda run: run.began, default=None)
        for second in line[index + 1 :]:
            for run in runs[first.number]:
                for later in runs[second.number]:
                    if _excused(run, later.began, grants[identity_of(first)]):
                        continue
                    if _excused(later, run.began, grants[identity_of(second)]):
                        continue
                    if later.began < run.end(now) and run.began < later.end(now):
                        yield f"jobs {first.number} and {second.number} of {first.line} ran at the same time"
                    elif (
                        later.began < run.began and _goes_first(first) and (run is earliest or _blocks(first))
                    ):
                        yield f"job {second.number} of {first.line} ran before job {first.number}"


def _goes_first(job: Planned) -> bool:
    """Return whether a job's place is where it was written first; a delayed one has that where it came due."""
    return not job.delay_seconds


def _blocks(job: Planned) -> bool:
    return job.queue not in PASSING


def _excused(run: "Execution", at: float, grants: Sequence[Grant]) -> bool:
    return any(
        one.took_over is not None and one.took_over.process is run.process and run.began <= one.at <= at
        for one in grants
    )
