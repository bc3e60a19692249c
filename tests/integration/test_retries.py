"""Retry topics on the real broker: never early, and late by less than a second."""

from datetime import timedelta

import pytest

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline

pytestmark = pytest.mark.stack


def test_a_delayed_job_is_never_early_and_less_than_a_second_late(pipeline: Pipeline) -> None:
    delays = [0.2, 0.9, 1.0, 1.7, 2.5, 3.3, 5.0, 6.2, 7.9]
    pipeline.worker().start()
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="warm-up")
        pipeline.wait_for("completed", 1)
        wanted = {
            jobs.publish(Work(), organization_id=f"org-{n}", delay=timedelta(seconds=seconds)): seconds
            for n, seconds in enumerate(delays * 5)
        }
    pipeline.wait_for("completed", 1 + len(wanted))
    late = []
    for event in pipeline.events():
        if event["kind"] == "completed" and event["jobId"] in wanted:
            waited = (event["startedAt"] - event["queuedAt"]).total_seconds()
            late.append(waited - wanted[event["jobId"]])
    assert len(late) == len(wanted)
    assert min(late) >= 0
    assert max(late) < 1, sorted(late)


def test_a_record_that_waits_goes_on_in_time_though_another_worker_joins(pipeline: Pipeline) -> None:
    first = pipeline.worker().start()
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(), organization_id="warm-up")
        pipeline.wait_for("completed", 1)
        wait = timedelta(seconds=12)
        jobs.publish_many([Publication(Work(), f"org-{number}", delay=wait) for number in range(40)])
    # It takes over some of the partitions of retry topics, and the first keeps the others.
    second = pipeline.worker("scheduled").start()
    pipeline.wait_for("completed", 41, 30)
    assert [worker.terminate() for worker in (first, second)] == [0, 0]


def test_a_snooze_spends_no_attempt_and_an_idempotency_key_runs_once(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        snoozed = jobs.publish(
            Work(fail_attempts=1, how="snooze"), organization_id="acme", max_attempts=1, job_id="snoozed"
        )
        jobs.publish_many([Publication(Work(), "acme", idempotency_key="invoice-7")] * 20)
        jobs.publish(Work(), organization_id="rival", idempotency_key="invoice-7")
    pipeline.worker().start()
    pipeline.wait_for("snoozed", 1)
    pipeline.wait_for("completed", 2)
    pipeline.wait_for_count("snoozed", 3)
    told = [event for event in pipeline.events() if event["jobId"] == snoozed and event["kind"] == "snoozed"]
    assert {event["attempt"] for event in told} == {1}
    assert [event["snoozes"] for event in told][:3] == [0, 1, 2]
    assert pipeline.effects() == {"acme-invoice-7", "rival-invoice-7"}
    assert len([one for one in pipeline.executions() if one.what == "end"]) == 2
    assert pipeline.records(CRITICAL.dead_letter_topic) == []
