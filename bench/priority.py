"""Publish critical jobs while reports wait: `python -m bench.priority --json`.

One `primary` worker, and 50,000 reports waiting for its five slots. Twenty critical jobs a second come in; measured is
the time from publishing to the start of their handlers. Reports go on all the while: they have slots of their own.
"""

import json
import time

import click

from bench.fairness import WARM_UP_SECONDS, Run, completed, waits, worker_on_a_stack
from bench.handlers import Pause, Report
from streams.client import SyncJobs
from streams.publication import Publication
from streams.settings import Settings

BATCH = 5_000
PER_SECOND = 20
BOUND_MS = 250.0


@click.command()
@click.option("--reports", default=50_000, help="How many reports wait.")
@click.option("--seconds", default=20.0, help="For how long critical jobs come in.")
@click.option("--work-ms", default=50, help="How long a report takes, in the worker's loop.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON line.")
def main(reports: int, seconds: float, work_ms: int, as_json: bool) -> None:
    """Measure critical jobs without reports and beside them."""
    alone = measure(0, seconds, work_ms)
    beside = measure(reports, seconds, work_ms)
    figures: dict[str, object] = {
        "bench": "priority",
        "reports": reports,
        "alone": waits([one for one in alone if one.organization.startswith("quiet")]),
        "beside_the_reports": waits([one for one in beside if one.organization.startswith("quiet")]),
        "reports_per_second": round(sum(one.organization == "reports" for one in beside) / seconds),
    }
    figures["within_bound"] = waits(beside)["p99_ms"] <= BOUND_MS
    click.echo(json.dumps(figures) if as_json else "\n".join(f"{k}={v}" for k, v in figures.items()))


def measure(reports: int, seconds: float, work_ms: int) -> list[Run]:
    """Return what ended while critical jobs came in."""
    with worker_on_a_stack({}) as (settings, _):
        _publish_reports(settings, reports, work_ms)
        with SyncJobs(settings) as jobs:
            began = time.monotonic()
            measured_from = time.time() + WARM_UP_SECONDS
            for number in range(int((WARM_UP_SECONDS + seconds) * PER_SECOND)):
                time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
                jobs.publish(Pause(work_ms=1), organization_id=f"quiet-{number % 10}")
        time.sleep(0.5)
        runs = completed(settings)
    return [one for one in runs if one.started >= measured_from]


def _publish_reports(settings: Settings, count: int, work_ms: int) -> None:
    with SyncJobs(settings) as jobs:
        for start in range(0, count, BATCH):
            size = min(BATCH, count - start)
            jobs.publish_many([Publication(Report(work_ms=work_ms), "reports") for _ in range(size)])


if __name__ == "__main__":
    main()
