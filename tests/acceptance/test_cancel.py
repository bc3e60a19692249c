"""Real workers, and an operator who changes their mind: every job that is cancelled ends within two seconds."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from redis import Redis

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from streams.settings import Settings
from tests.handlers import Block, Compute, Work
from tests.processes import Pipeline, wait_until
from tracking.database import open_database
from tracking.jobs import find_jobs

pytestmark = pytest.mark.stack

WITHIN_S = 2.0
"""From the call that cancels to the end of the job."""

NAMES = ("in the loop", "in a process", "queued", "in a retry topic", "due soon")


@pytest.fixture
def stored(pipeline: Pipeline, database: str) -> Iterator[Settings]:
    """Run a sink into a store of the test's own, and yield settings that know it."""
    pipeline.environment["DATABASE_URL"] = database
    assert pipeline.command("db", "upgrade").returncode == 0
    with (pipeline.folder / "tracking.log").open("wb") as log:
        command = [str(Path(sys.executable).parent / "streams"), "tracking"]
        sink = subprocess.Popen(command, env=pipeline.environment, stdout=log, stderr=log)
    yield pipeline.settings.model_copy(update={"database_url": SecretStr(database)})
    sink.terminate()
    assert sink.wait(30) == 0


def states(settings: Settings, job_ids: list[str]) -> dict[str, str]:
    """Return what the store says of jobs of acme."""
    assert settings.database_url is not None
    engine = open_database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        return {job_id: job.status for job_id, job in find_jobs(engine, "acme", job_ids).items()}
    finally:
        engine.dispose()


def cancelled(pipeline: Pipeline, job_id: str) -> list[dict[str, Any]]:
    return [one for one in pipeline.events() if (one["jobId"], one["kind"]) == (job_id, "cancelled")]


def started(pipeline: Pipeline, job_id: str) -> bool:
    return any(one.job_id == job_id and one.what == "start" for one in pipeline.executions())


def test_what_is_queued_runs_or_waits_is_cancelled_within_two_seconds_and_others_are_not(
    pipeline: Pipeline, stored: Settings
) -> None:
    pipeline.worker(CONCURRENCY_CRITICAL="1").start()
    pipeline.worker("document").start()
    with SyncJobs(stored) as jobs:
        in_loop = jobs.publish(Work(number=1, work_ms=25_000), organization_id="acme")
        wait_until(lambda: started(pipeline, in_loop), 40, "it runs in the loop")
        in_process = jobs.publish(Compute(work_ms=2_900), organization_id="acme")
        queued = jobs.publish(Work(number=2), organization_id="acme")
        in_retry = jobs.publish(Work(number=3), organization_id="acme", delay=timedelta(hours=7))
        soon_due = jobs.publish(Work(number=4), organization_id="acme", delay=timedelta(seconds=4))
        others = jobs.publish_many(
            [Publication(Work(number=n), "globex", job_id=f"job-{n}") for n in range(50)]
        )
        ours = [in_loop, in_process, queued, in_retry, soon_due]
        known = {in_loop: "running", queued: "queued", in_retry: "delayed", soon_due: "delayed"}
        wait_until(lambda: known.items() <= states(stored, ours).items(), 20, "the store knows them")
        wait_until(lambda: started(pipeline, in_process), 20, "it runs in a process")
        [pid] = [one.pid for one in pipeline.executions() if one.job_id == in_process]

        said_at, clock = datetime.now(UTC), time.monotonic()
        found = {one.job_id: one for one in jobs.cancel(*ours, organization_id="acme", reason="wrong month")}
        wait_until(lambda: not psutil.pid_exists(pid), WITHIN_S, "its process is gone")
        wait_until(lambda: set(states(stored, ours).values()) == {"cancelled"}, WITHIN_S, "the store says so")
        store_s = time.monotonic() - clock

    wait_until(lambda: all(cancelled(pipeline, one) for one in (in_loop, in_process)), 10, "workers tell")
    took = {
        name: (cancelled(pipeline, one)[0]["at"] - said_at).total_seconds()
        for name, one in zip(NAMES, ours, strict=True)
    }
    assert all(0 <= seconds < WITHIN_S for seconds in took.values()), took
    assert store_s < 2 * WITHIN_S
    assert {one: found[one].told for one in known} == {
        in_loop: False,
        queued: True,
        in_retry: True,
        soon_due: True,
    }

    pipeline.wait_for("completed", len(others))
    # The one that is due by now was read, and known to be cancelled.
    wait_until(
        lambda: any(one.headers["ce_id"] == soon_due.encode() for one in pipeline.records(CRITICAL.topic)),
        20, "it is due",
    )  # fmt: skip
    end = len(pipeline.records(CRITICAL.topic))
    wait_until(lambda: _settled(pipeline) == end, 20, "everything is settled")
    assert {one.job_id for one in pipeline.executions() if one.what == "end"} == set(others)
    assert {one.job_id for one in pipeline.executions()} == {in_loop, in_process, *others}
    assert pipeline.effects() == {f"globex-{one}" for one in others}
    assert {one: len(cancelled(pipeline, one)) for one in ours} == dict.fromkeys(ours, 1)
    assert pipeline.kinds()["retried"] == 0


def _settled(pipeline: Pipeline) -> int:
    return sum(
        offset
        for (topic, _), offset in pipeline.committed().items()
        if topic == CRITICAL.topic and offset > 0
    )


def test_what_was_cancelled_while_no_worker_was_there_never_runs(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        ours = jobs.publish_many([Publication(Work(number=n), "acme") for n in range(100)])
        kept = jobs.publish_many([Publication(Block(), "acme") for _ in range(5)])
    done = pipeline.command("cancel", "--org", "acme", "--json", given="\n".join([*ours, "unknown"]))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 101
    pipeline.worker().start()
    pipeline.wait_for("cancelled", 100)
    pipeline.wait_for("completed", len(kept))
    assert {one.job_id for one in pipeline.executions()} == set(kept)


def test_a_worker_that_was_cut_off_from_redis_hears_of_it_afterwards(
    pipeline: Pipeline, stack: Any, redis_url: str
) -> None:
    worker = pipeline.worker().start()
    with SyncJobs(pipeline.settings) as jobs:
        runs = jobs.publish(Work(work_ms=25_000), organization_id="acme")
        wait_until(lambda: started(pipeline, runs), 40, "it runs")
        redis = stack.service("redis")
        redis.stop()
        try:
            wait_until(lambda: "operators are not heard" in worker.said(), 20, "the worker says so")
            done = pipeline.command("cancel", runs, "--org", "acme")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("Error: no worker was told to cancel: Redis cannot answer")
        finally:
            redis.start()
        wait_until(lambda: _answers(redis_url), 10, "Redis is back")
        said_at = datetime.now(UTC)
        jobs.cancel(runs, organization_id="acme")
        wait_until(lambda: bool(cancelled(pipeline, runs)), 10, "it is cancelled")
    assert (cancelled(pipeline, runs)[0]["at"] - said_at).total_seconds() < WITHIN_S


def _answers(url: str) -> bool:
    with Redis.from_url(url) as client:
        return bool(client.ping())
