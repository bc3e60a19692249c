"""Dead letters: listed, replayed after the cause is gone, and left alone when there is nothing to do."""

import json

import pytest

from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline

pytestmark = pytest.mark.stack


def test_dead_letters_are_listed_by_organization_and_replayed_once_they_can_succeed(
    pipeline: Pipeline,
) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        wanted = [
            Publication(Work(number=n, fail_attempts=1, how="poison"), f"org-{n % 2}") for n in range(6)
        ]
        job_ids = jobs.publish_many(wanted)
        jobs.publish(Work(), organization_id="org-0")
    pipeline.worker().start()
    pipeline.wait_for("dead", 6)

    listed = [json.loads(line) for line in pipeline.command("dlt", "list", "--json").stdout.splitlines()]
    assert {letter["jobId"] for letter in listed} == set(job_ids)
    assert {letter["errorMessage"] for letter in listed} == {"this can never work"}
    mine = pipeline.command(
        "dlt", "list", "--queue", "critical", "--org", "org-1", "--json"
    ).stdout.splitlines()
    assert {json.loads(line)["organizationId"] for line in mine} == {"org-1"}
    assert len(mine) == 3
    assert "no dead letters" in pipeline.command("dlt", "list", "--queue", "emails").stdout

    dry = pipeline.command("replay", "--queue", "critical", "--org", "org-1", "--since", "1h", "--dry-run")
    assert "3 dead letters of critical would be replayed" in dry.stdout
    assert len(pipeline.records(CRITICAL.topic)) == 7
    # A replay begins at attempt 1, at which this job fails: it dies again, and a later replay is its last letter.
    assert pipeline.command("replay", "--queue", "critical", "--org", "org-1").returncode == 0
    pipeline.wait_for("replayed", 3)
    pipeline.wait_for_count("dead", 9)
    again = pipeline.command("replay", "--queue", "critical", "--org", "org-1", "--dry-run")
    assert "3 dead letters of critical would be replayed" in again.stdout


def test_what_completed_since_is_left_alone(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish(Work(work_ms=3000, fail_attempts=0), organization_id="acme", job_id="slow")
        # The same job as its producer might state it again after losing the answer; only one of them runs.
        jobs.publish(Work(work_ms=3000, fail_attempts=0), organization_id="acme", job_id="slow")
        jobs.publish(Work(fail_attempts=1, how="poison"), organization_id="acme", job_id="fixed")
    pipeline.worker().start()
    pipeline.wait_for("dead", 1)
    pipeline.wait_for("completed", 1)
    assert [one.job_id for one in pipeline.executions() if one.what == "end"] == ["slow"]
    (letter,) = pipeline.records(CRITICAL.dead_letter_topic)
    first = next(one for one in pipeline.records(CRITICAL.topic) if one.headers["ce_id"] == b"slow")
    pipeline.produce(CRITICAL.dead_letter_topic, first.key, first.value or b"", first.headers)
    ended = pipeline.command("replay", "--queue", "critical", "--dry-run")
    assert "would replay fixed" in ended.stdout
    assert "1 dead letter of critical would be replayed; 1 completed since and are left alone" in ended.stdout
    assert letter.headers["ce_id"] == b"fixed"
