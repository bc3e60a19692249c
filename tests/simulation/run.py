"""Many seeds on all processors, and one seed in full."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from functools import partial

from tests.simulation.plan import Kind, plan_of
from tests.simulation.world import Report, World

CHUNK = 10


def run(seed: int, *, only: Kind | None = None) -> Report:
    """Run the world of a seed."""
    return World(plan_of(seed, only)).run()


def reports(first: int, seeds: int, only: Kind | None = None) -> Iterator[Report]:
    """Yield the reports of consecutive seeds, in their order."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count() or 1) as pool:
        yield from pool.imap(partial(run, only=only), range(first, first + seeds), chunksize=CHUNK)


def first_caught(seeds: int, only: Kind | None = None) -> Report | None:
    """Return the report of the first seed that fails, of so many from 0, or None."""
    found = (report for report in map(partial(run, only=only), range(seeds)) if report.violations)
    return next(found, None)


def explore(first: int, seeds: int, only: Kind | None) -> int:
    """Run consecutive seeds, print those that fail and a sum, and return 1 when one has failed."""
    began = time.monotonic()
    failed = executions = faults = 0
    for done, report in enumerate(reports(first, seeds, only), 1):
        executions += report.executions
        faults += report.faults
        if report.violations:
            failed += 1
            print(told(report, only), flush=True)
        if done % 1000 == 0:
            so_far = f"{done} seeds, {failed} failed, {time.monotonic() - began:.0f} s"
            print(so_far, file=sys.stderr, flush=True)
    print(
        f"{seeds} seeds from {first}: {failed} failed; {executions} executions, {faults} faults,"
        f" {time.monotonic() - began:.1f} s"
    )
    return 1 if failed else 0


def told(report: Report, only: Kind | None = None) -> str:
    """Return what a failed seed violated, and how to see its story."""
    lines = "".join(f"\n  {violation}" for violation in report.violations)
    how = f"--seed {report.seed}" + (f" --only '{only}'" if only else "")
    return f"seed {report.seed} failed:{lines}\n  replay: python -m tests.simulation {how} --trace [--job NUMBER]"


def show(seed: int, only: Kind | None, *, trace: bool, job: str | None) -> int:
    """Run one seed, print what came of it, and return 1 when it failed."""
    plan = plan_of(seed, only)
    report = World(plan, keep_trace=trace).run()
    names: list[str] = []
    for planned in plan.jobs:
        if job in (str(planned.number), planned.job_id):
            print(planned)
            names = [f" {planned.number} attempt", f" {planned.job_id} ", "fault:", "starts", "healed"]
    for line in report.trace:
        if not names or any(name in line for name in names):
            print(line)
    print(
        f"seed {seed}: {report.executions} executions, {report.faults} faults, {report.seconds:.1f} s of its time,"
        f" digest {report.digest}"
    )
    if report.violations:
        print(told(report, only))
    return 1 if report.violations else 0
