"""A cap on a backlog with the real broker, Redis and worker."""

import json
from datetime import timedelta

import pytest
from redis import Redis

from streams.client import SyncJobs
from streams.errors import BacklogFull
from streams.publication import Publication
from streams.queues import CRITICAL
from tests.handlers import Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack


def works(*numbers: int, organization: str = "acme", **options: object) -> list[Publication]:
    return [
        Publication(Work(number=number), organization, job_id=f"{organization}-{number}", **options)  # type: ignore[arg-type]
        for number in numbers
    ]


def test_publishing_is_refused_beyond_the_cap_until_jobs_have_ended(pipeline: Pipeline) -> None:
    assert pipeline.command("limits", "set", "--org", "acme", "--backlog", "10").returncode == 0
    with SyncJobs(pipeline.settings) as jobs, Redis.from_url(pipeline.settings.redis) as redis:

        def counted() -> int:
            return int(redis.zcard("{streams}:backlog:acme"))

        with pytest.raises(BacklogFull) as refused:
            jobs.publish_many(works(*range(15)) + works(1, organization="globex"))
        assert refused.value.retry_after == timedelta(minutes=1)
        assert refused.value.accepted == ("globex-1",)
        assert pipeline.kinds() == {"queued": 1}, "nothing of acme's was sent"
        assert counted() == 0

        jobs.publish_many(works(*range(9)))
        jobs.publish_many(works(*range(9)))
        jobs.publish_many(works(9, delay=timedelta(seconds=1)))
        assert counted() == 10, "duplicates count once, delayed jobs count"
        with pytest.raises(BacklogFull, match="acme has 10 unfinished jobs and may have 10, so 1 more"):
            jobs.publish_many(works(10))
        line = json.dumps({"type": "test.work", "organizationId": "acme", "payload": {"number": 10}})
        typed = pipeline.command("publish", CRITICAL.name, given=line)
        assert (typed.returncode, typed.stdout) == (1, "")
        assert typed.stderr.startswith("Error: acme has 10 unfinished jobs and may have 10, so 1 more")
        assert typed.stderr.count("\n") == 1

        worker = pipeline.worker().start()
        wait_until(lambda: counted() == 0, 60, "all jobs of acme have left")
        pipeline.wait_for("completed", 11)
        jobs.publish_many(works(*range(10)))
        assert counted() == 0, "what has ended does not count again"
        accepted = jobs.publish_many(works(*range(20, 30)))
        assert len(accepted) == 10
        pipeline.wait_for("completed", 21)
        wait_until(lambda: counted() == 0, 10, "they have left, too")
        assert worker.terminate() == 0


def test_a_publisher_that_does_not_reach_redis_publishes(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = pipeline.settings.model_copy(update={"redis_url": None, "redis_port": 1})
    with SyncJobs(nowhere) as jobs:
        for number in range(3):
            jobs.publish_many(works(number))
    assert pipeline.kinds() == {"queued": 3}
    assert caplog.text.count("jobs are published whatever the caps on backlogs: Redis cannot answer") == 1
