"""Services that are down when a worker starts, or while jobs run."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import devstack
from streams.client import SyncJobs
from streams.publication import Publication
from tests.handlers import Block, Work
from tests.processes import Pipeline, wait_until

pytestmark = pytest.mark.stack


def test_kafka_down_at_start_is_one_sentence_and_exit_code_1(pipeline: Pipeline) -> None:
    worker = pipeline.worker(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", KAFKA_START_TIMEOUT="2s").start()
    assert worker.wait(20) == 1
    assert "Kafka did not answer within 2 s" in worker.said()
    assert "Traceback" not in worker.said()


def test_missing_topics_are_one_sentence_that_names_the_remedy(pipeline: Pipeline) -> None:
    worker = pipeline.worker(KAFKA_PARTITIONS="5").start()
    assert worker.wait(20) == 1
    assert "partitions should be 5, is 4" in worker.said()
    assert "run: streams topics ensure" in worker.said()
    assert "Traceback" not in worker.said()


def test_redis_down_at_start_keeps_closed_queues_waiting_and_open_ones_going(
    pipeline: Pipeline, stack: devstack.Stack
) -> None:
    redis = stack.service("redis")
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish_many([Publication(Work(), "acme"), Publication(Block(), "acme")])
    redis.stop()
    try:
        worker = pipeline.worker().start()
        pipeline.wait_for("completed", 1)
        wait_until(
            lambda: "webhooks waits for Redis" in worker.said(), 30, "the worker says what it waits for"
        )
        assert {event["queue"] for event in pipeline.events() if event["kind"] == "completed"} == {"critical"}
    finally:
        redis.start()
    pipeline.wait_for("completed", 2)
    assert worker.terminate() == 0


def test_postgres_down_for_a_minute_loses_nothing_and_tracking_catches_up(
    pipeline: Pipeline, stack: devstack.Stack, database: str
) -> None:
    environment = {**pipeline.environment, "DATABASE_URL": database}
    pipeline.environment.update(environment)
    assert pipeline.command("db", "upgrade").returncode == 0
    with (pipeline.folder / "tracking.log").open("wb") as log:
        sink = subprocess.Popen(
            [str(Path(sys.executable).parent / "streams"), "tracking"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    engine = create_engine(database)

    def completed() -> int:
        with engine.connect() as connection:
            count = text("select count(*) from job_executions where status = 'completed'")
            return int(connection.execute(count).scalar_one())

    try:
        pipeline.worker().start()
        with SyncJobs(pipeline.settings) as jobs:
            jobs.publish_many([Publication(Work(work_ms=5), f"org-{n % 3}") for n in range(200)])
            wait_until(lambda: completed() == 200, 60, "the store has what was done before")
            postgres = stack.service("postgres")
            engine.dispose()
            postgres.stop()
            down = time.monotonic()
            try:
                for _ in range(12):
                    jobs.publish_many([Publication(Work(work_ms=5), f"org-{n % 3}") for n in range(50)])
                    wait_until(lambda: time.monotonic() - down > 60 * (_ + 1) / 12, 10, "jobs over a minute")  # noqa: B023
                pipeline.wait_for("completed", 800)
                assert sink.poll() is None, "the sink waits"
            finally:
                postgres.start()
        wait_until(lambda: completed() == 800, 90, "the store has caught up")
    finally:
        engine.dispose()
        sink.terminate()
        assert sink.wait(30) == 0
