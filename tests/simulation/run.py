"""Many seeds on all processors, and one seed in full."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from itertools import islice

from tests.simulation.plan import plan_of
from tests.simulation.world import Report, run

CHUNK = 20


def reports(first: int, seeds: int, workers: int) -> Iterator[Report]:
    """Yield the reports of consecutive seeds, in their order."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        yield from pool.imap(run, range(first, first + seeds), chunksize=CHUNK)


def explore(first: int, seeds: int, workers: int) -> int:
    """Run consecutive seeds, print those that fail and a sum, and return 1 when one has failed."""
    began = time.monotonic()
    failed: list[int] = []
    executions = faults = 0
    for report in reports(first, seeds, workers):
        executions += report.executions
        faults += report.faults
        if report.violations:
            failed.append(report.seed)
            print(told(report), flush=True)
        done = report.seed - first + 1
        if done % 1000 == 0:
            print(f"{done} seeds, {len(failed)} failed, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(
        f"{seeds} seeds from {first}: {len(failed)} failed, {executions} executions, {faults} faults,"
        f" {time.monotonic() - began:.1f} s"
    )
    return 1 if failed else 0


def told(report: Report) -> str:
    """Return what a failed seed violated, and how to see its story."""
    lines = "".join(f"\n  {violation}" for violation in report.violations)
    return (
        f"seed {report.seed} failed:{lines}"
        f"\n  replay it: python -m tests.simulation --seed {report.seed} --trace [--job NUMBER]"
    )


def show(seed: int, *, trace: bool, job: str | None) -> int:
    """Run one seed, print what came of it, and return 1 when it failed."""
    plan = plan_of(seed)
    report = run(seed, keep_trace=trace)
    names = [job] if job else []
    for planned in plan.jobs:
        if job is not None and job in (str(planned.number), planned.job_id):
            print(planned)
            names = [f" {planned.number} attempt", f" {planned.job_id} "]
    for line in report.trace:
        if not names or any(name in line for name in (*names, "fault:", "starts", "healed")):
            print(line)
    print(
        f"seed {seed}: {report.executions} executions, {report.faults} faults, {report.seconds:.1f} s of its time,"
        f" digest {report.digest}"
    )
    if report.violations:
        print(told(report))
    return 1 if report.violations else 0


def first_caught(seeds: int, first: int = 0) -> Report | None:
    """Return the report of the first seed that fails, among so many, or None."""
    found = (report for report in map(run, range(first, first + seeds)) if report.violations)
    return next(islice(found, 1), None)
