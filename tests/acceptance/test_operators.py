"""Real workers and what operators say to them: pauses, kill switches, drains."""

import json
import time
from typing import Any

import pytest

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack

WITHIN_S = 2.0
"""Within which every worker has heard what was said."""


def do(pipeline: Pipeline, *arguments: str) -> str:
    done = pipeline.command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(pipeline: Pipeline, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in do(pipeline, *arguments, "--json").splitlines()]


def ran(pipeline: Pipeline, what: str = "start") -> list[str]:
    return [one.job_id for one in pipeline.executions() if one.what == what]


def on_their_way(job_ids: list[str]) -> list[Publication]:
    return [Publication(Work(), one.partition(".")[0], job_id=one) for one in job_ids]


def ids(organization: str, count: int, name: str = "job") -> list[str]:
    return [f"{organization}.{name}-{number}" for number in range(count)]


def test_a_paused_organization_waits_while_others_go_on_and_then_runs_once(pipeline: Pipeline) -> None:
    workers = [pipeline.worker().start() for _ in range(2)]
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="globex", job_id="globex.first")
        wait_until(lambda: len(ran(pipeline, "end")) == 1, 60, "they work")
        wait_until(lambda: pipeline.members() == 2, 60, "both have partitions")
        do(pipeline, "pause", "--org", "acme", "--reason", "their database is down", "--by", "ana")
        time.sleep(WITHIN_S)
        paused, others = ids("acme", 100), ids("globex", 100)
        jobs.publish_many(on_their_way([one for pair in zip(paused, others, strict=True) for one in pair]))
        wait_until(lambda: set(ran(pipeline, "end")) >= set(others), 30, "the others have run")
        # What has run and is not durable yet would run again.
        pipeline.wait_for("completed", 1 + len(others))
        # One that starts only now hears of it before it takes anything.
        workers[0].kill()
        third = pipeline.worker().start()
        wait_until(lambda: pipeline.members() == 2, 60, "the third has partitions")
        wait_until(
            lambda: sum(one.headers["organization-id"] == b"acme" for one in pipeline.records("jobs.retry.5s"))
            >= len(paused),
            30, "what is paused has stepped aside",
        )  # fmt: skip
        assert set(ran(pipeline)) == {"globex.first", *others}
        assert [one["scope"] for one in rows(pipeline, "paused")] == ["organization=acme"]

        do(pipeline, "resume", "--org", "acme", "--by", "ana")
        time.sleep(WITHIN_S)
        jobs.publish(Work(), organization_id="acme", job_id="acme.new")
        wait_until(lambda: "acme.new" in ran(pipeline, "end"), 5, "what is new runs at once")
        wait_until(lambda: set(ran(pipeline, "end")) >= set(paused), 60, "what was paused has run")
    pipeline.wait_for("completed", 202)
    assert sorted(ran(pipeline)) == sorted(["globex.first", *paused, *others, "acme.new"])
    completed = [one for one in pipeline.events() if one["kind"] == "completed"]
    assert {(one["attempt"], one["snoozes"]) for one in completed} == {(1, 0)}
    assert {"dead", "retried", "snoozed", "cancelled"}.isdisjoint(pipeline.kinds())
    assert [workers[1].terminate(), third.terminate()] == [0, 0]


def test_a_paused_queue_stands_still_and_its_worker_is_well(pipeline: Pipeline) -> None:
    worker = pipeline.worker(STALLED_AFTER="5s").start()
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="acme", job_id="acme.first")
        wait_until(lambda: len(ran(pipeline, "end")) == 1, 60, "it works")
        do(pipeline, "pause", "--queue", "critical", "--for", "14s")
        time.sleep(WITHIN_S)
        jobs.publish_many(on_their_way(ids("acme", 50)))
        # Twice STALLED_AFTER ends a worker that has something to do and does not.
        time.sleep(11)
        assert ran(pipeline) == ["acme.first"]
        assert worker.process.poll() is None
        wait_until(lambda: len(ran(pipeline, "end")) == 51, 15, "it goes on by itself")
    assert pipeline.records("jobs.retry.5s") == []
    assert worker.terminate() == 0


def test_what_a_kill_switch_matches_is_a_dead_letter_that_can_be_replayed(pipeline: Pipeline) -> None:
    pipeline.worker().start()
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="acme", job_id="acme.first")
        wait_until(lambda: len(ran(pipeline, "end")) == 1, 60, "it works")
        selector = 'type == "test.work" and payload.number >= 50 and payload.workMs == 1'
        do(pipeline, "kill", selector, "--reason", "they mail the wrong people", "--by", "ana")
        [switch] = rows(pipeline, "kills")
        time.sleep(WITHIN_S)
        work = [Publication(Work(number=one, work_ms=1), "acme", job_id=f"acme.{one}") for one in range(100)]
        jobs.publish_many(work)
        pipeline.wait_for("dead", 50)
        pipeline.wait_for("completed", 51)
        assert set(ran(pipeline)) == {"acme.first", *(f"acme.{number}" for number in range(50))}
        letters = pipeline.records(CRITICAL.dead_letter_topic)
        assert {one.headers["reason"] for one in letters} == {b"killed: they mail the wrong people"}
        assert {one.headers["ce_id"].decode() for one in letters} == {
            f"acme.{number}" for number in range(50, 100)
        }

        do(pipeline, "kill", "--lift", switch["id"], "--by", "ana")
        time.sleep(WITHIN_S)
        do(pipeline, "replay", "--queue", "critical")
        pipeline.wait_for("completed", 101)
    assert sorted(ran(pipeline)) == sorted(["acme.first", *(f"acme.{number}" for number in range(100))])


def test_a_drained_worker_finishes_what_runs_while_others_have_its_partitions(pipeline: Pipeline) -> None:
    pipeline.environment["REVOKE_GRACE"] = "2s"
    first = pipeline.worker(WORKER_ID="first").start()
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(work_ms=28_000), organization_id="acme", job_id="acme.long")
        wait_until(lambda: "acme.long" in ran(pipeline), 60, "it runs")
        second = pipeline.worker(WORKER_ID="second").start()
        wait_until(lambda: pipeline.members() == 2, 60, "both have partitions")
        wait_until(lambda: len(rows(pipeline, "alive")) == 2, 10, "both say that they live")
        refused = pipeline.command("drain", "third")
        assert refused.returncode == 1
        assert (
            "no worker lives that is called 'third'; those that live: primary/first, primary/second"
            in refused.stderr
        )

        do(pipeline, "drain", "first", "--by", "ana")
        wait_until(lambda: pipeline.members() == 1, 15, "the other has its partitions")
        assert "acme.long" not in ran(pipeline, "end")
        assert first.process.poll() is None
        quick = ids("acme", 20) + ids("globex", 20)
        jobs.publish_many(on_their_way(quick))
        wait_until(lambda: set(ran(pipeline, "end")) >= set(quick), 15, "the other one runs all")
        assert {one.pid for one in pipeline.executions() if one.job_id in quick} == {second.process.pid}
        assert first.wait(40) == 0
    assert "acme.long" in ran(pipeline, "end")
    assert sorted(ran(pipeline)) == sorted(["acme.long", *quick])
    assert [one["by"] for one in rows(pipeline, "audit")] == ["ana"]
    # What was said to the process before was not said to this one.
    again = pipeline.worker(WORKER_ID="first").start()
    wait_until(lambda: pipeline.members() == 2, 60, "it is back")
    time.sleep(WITHIN_S)
    assert again.process.poll() is None
    assert pipeline.members() == 2
    assert [again.terminate(), second.terminate()] == [0, 0]
