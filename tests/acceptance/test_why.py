"""Real workers, and an operator who wants to know: why does it wait, who uses the slots, what do the metrics say?"""

import json
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devstack.process import free_port
from streams.client import SyncJobs
from streams.publication import Publication
from streams.queues import CRITICAL
from streams.why import Place, place_of
from tests.handlers import Work
from tests.processes import Pipeline, Worker, wait_until
from tracking.jobs import Job

pytestmark = pytest.mark.stack

OTHERS = [f"org-{number}" for number in range(98)]


def told(pipeline: Pipeline, *arguments: str) -> list[dict[str, Any]]:
    answered = pipeline.command(*arguments, "--json")
    assert answered.returncode == 0, answered.stderr
    return [json.loads(line) for line in answered.stdout.splitlines()]


def metrics(worker: Worker, port: int) -> dict[str, dict[str, float]]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        family.name: {" ".join(sample.labels.values()): sample.value for sample in family.samples}
        for family in families
    }


def test_why_names_the_limit_and_an_expected_start_and_top_and_metrics_show_who_waits(
    pipeline: Pipeline,
) -> None:
    limited = pipeline.command("limits", "set", "--queue", "critical", "--org", "acme", "--rate", "1/min")
    assert limited.returncode == 0, limited.stderr
    port = free_port()
    worker = pipeline.worker(CONCURRENCY_CRITICAL="2", HEALTH_PORT=str(port)).start()
    with SyncJobs(pipeline.settings) as jobs:
        ours = jobs.publish_many([Publication(Work(number=n), "acme") for n in range(8)])
        # More than the worker runs while the commands below start, on whatever machine.
        jobs.publish_many([Publication(Work(number=n, work_ms=4_000), "globex") for n in range(40)])
        jobs.publish_many([Publication(Work(number=1, work_ms=20), name) for name in OTHERS])
    pipeline.wait_for("completed", 1)
    wait_until(
        lambda: metrics(worker, port)["streams_limit_refusals"].get("organization rate critical", 0) > 0,
        30,
        "refusals are counted",
    )

    (why,) = told(pipeline, "why", ours[-1], "--org", "acme")
    assert why["where"] == "window"
    assert any("rate:queue=critical,organization=acme (1/m)" in one for one in why["because"])
    assert why["startsAt"] is not None
    assert {one["name"] for one in why["limits"]} == {"rate:queue=critical,organization=acme"}
    assert why["silent"] == []
    people = pipeline.command("why", ours[-1], "--org", "acme")
    assert "Of its organization" in people.stdout
    assert re.search(r"rate:queue=critical,organization=acme \(1/m\): \d left", people.stdout)

    unknown = pipeline.command("why", "nobody", "--org", "acme")
    assert unknown.returncode == 1
    assert "there is no job nobody of acme as far as is known" in unknown.stderr

    rows = {row["organization_id"]: row for row in told(pipeline, "orgs", "top", "--limit", "100")}
    assert rows["acme"]["limited"] > 0
    assert rows["globex"]["running"] + rows["globex"]["queued"] > 0
    assert sum(row["organizations"] for row in rows.values()) == 100
    assert len(told(pipeline, "orgs", "top", "--limit", "3")) == 4

    found = metrics(worker, port)
    assert len(found["streams_organization_queued"]) <= 21
    assert found["streams_queue_slots"]["critical"] == 2
    assert found["streams_jobs_ended"]["completed critical"] >= 1


def test_without_a_worker_that_lives_it_says_so(pipeline: Pipeline, database: str) -> None:
    pipeline.environment["DATABASE_URL"] = database
    assert pipeline.command("db", "upgrade").returncode == 0
    with SyncJobs(pipeline.settings) as jobs:
        job_id = jobs.publish(Work(), organization_id="acme")
    answered = pipeline.command("why", job_id, "--org", "acme")
    assert answered.returncode == 1
    assert "neither the ledger nor the store knows of it" in answered.stderr
    assert pipeline.command("orgs", "top").stdout.startswith("no organization has anything")


def test_where_a_record_lies_that_nobody_has_read_is_told_by_the_broker(pipeline: Pipeline) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        for number in range(10):
            jobs.publish(Work(number=number), organization_id="acme")
            wait_until(lambda: len(pipeline.records(CRITICAL.topic)) == number + 1, 10, "it is there")  # noqa: B023
    codec = pipeline.codec(CRITICAL)
    for record in pipeline.records(CRITICAL.topic):
        job = codec.decode(record.value or b"")
        unset: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
        known = {"organization_id": "acme", "queue_name": "critical", "status": "queued"}
        stored = Job(**{**unset, **known, "queued_at": job["createdAt"]})
        assert place_of(stored, pipeline.settings) == Place(record.topic, record.partition, record.offset)
        later = replace(stored, next_retry_at=job["createdAt"] + timedelta(hours=1))
        assert place_of(later, pipeline.settings) == Place(record.topic, record.partition, 10)
