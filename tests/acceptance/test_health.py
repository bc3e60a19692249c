"""What the probes of a real worker are told: standing still ends it, waiting for others does not."""

import json
import signal
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

import devstack
from devstack.process import free_port
from streams.client import SyncJobs
from streams.publication import Publication
from tests.handlers import Block, Work
from tests.processes import Pipeline, Worker, wait_until

pytestmark = pytest.mark.stack

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Probed:
    """A worker with a known health port, where standing still is told after 5 s."""

    def __init__(self, pipeline: Pipeline, **environment: str) -> None:
        self._port = free_port()
        self.worker: Worker = pipeline.worker(
            HEALTH_PORT=str(self._port), STALLED_AFTER="5s", SHUTDOWN_GRACE="1s", **environment
        ).start()
        self.wait_for("/ready", 200, 30)

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return status and body; status 0 when nothing answers within the time limit of a probe."""
        try:
            with _opener.open(f"http://127.0.0.1:{self._port}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)
        except OSError:
            return 0, {}

    def wait_for(self, path: str, status: int, within_seconds: float = 20) -> dict[str, Any]:
        """Wait until a probe gets a status, and return what it is told."""
        answers: list[tuple[int, dict[str, Any]]] = []

        def answered() -> bool:
            answers.append(self.ask(path))
            return answers[-1][0] == status

        wait_until(answered, within_seconds, f"{path} answers {status}")
        return answers[-1][1]

    def stays_live(self, seconds: float) -> None:
        """Check that it is live all the time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status, told = self.ask("/health")
            assert status == 200, told
            time.sleep(0.1)


def publish(pipeline: Pipeline, *payloads: Any) -> None:
    with SyncJobs(pipeline.settings) as jobs:
        jobs.publish_many([Publication(payload, "acme") for payload in payloads])


def test_without_redis_it_is_live_and_not_ready_until_redis_is_back(
    pipeline: Pipeline, stack: devstack.Stack
) -> None:
    probed = Probed(pipeline)
    redis = stack.service("redis")
    redis.stop()
    try:
        told = probed.wait_for("/ready", 503)
        assert told["status"] == "not ready"
        assert len(told["missing"]) == 1
        assert "Redis cannot answer" in told["missing"][0]
        publish(pipeline, Block(), Work())
        pipeline.wait_for("completed", 1)
        probed.stays_live(8)
    finally:
        redis.start()
    assert probed.wait_for("/ready", 200)["missing"] == []
    pipeline.wait_for("completed", 2)
    assert probed.worker.terminate() == 0


def test_while_the_broker_hangs_it_is_live_and_not_ready_even_with_outcomes_to_settle(
    pipeline: Pipeline, stack: devstack.Stack
) -> None:
    probed = Probed(pipeline)
    publish(pipeline, Work(work_ms=500))
    wait_until(lambda: len(pipeline.executions()) == 1, 30, "the job runs")
    kafka = stack.service("kafka")
    kafka.pause()
    try:
        assert "Kafka does not answer" in probed.wait_for("/ready", 503)["missing"][0]
        wait_until(lambda: len(pipeline.executions()) == 2, 10, "the job has ended")
        probed.stays_live(10)
    finally:
        kafka.resume()
    probed.wait_for("/ready", 200, 40)
    pipeline.wait_for("completed", 1)
    assert probed.worker.terminate() == 0


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("forwarder", "the retry forwarder has not gone round for "),
        # This one also keeps the worker from ending by itself, and the watchdog ends it.
        ("admission", "critical has jobs to run and a slot for them, and admitted and finished none for "),
    ],
)
def test_what_stands_still_is_named_and_ends_the_worker(pipeline: Pipeline, part: str, sentence: str) -> None:
    probed = Probed(pipeline, HANDLER_MODULES="tests.handlers,tests.stuck", STUCK=part)
    stuck = pipeline.folder / "effects" / part
    stuck.touch()
    publish(pipeline, Work())
    told = probed.wait_for("/health", 503)
    assert told["status"] == "stalled"
    assert [one.startswith(sentence) for one in told["stalled"]] == [True]
    assert probed.worker.wait(40) == 1
    assert f"the worker does not go on and ends: {sentence}" in probed.worker.said()
    stuck.unlink()
    pipeline.worker().start()
    pipeline.wait_for("completed", 1)


def test_with_stalled_exit_off_it_goes_on_when_the_part_does(pipeline: Pipeline) -> None:
    probed = Probed(
        pipeline, HANDLER_MODULES="tests.handlers,tests.stuck", STUCK="admission", STALLED_EXIT="false"
    )
    stuck = pipeline.folder / "effects" / "admission"
    stuck.touch()
    publish(pipeline, Work())
    probed.wait_for("/health", 503)
    wait_until(
        lambda: int(probed.ask("/health")[1]["stalled"][0].split()[-2]) > 12, 20, "beyond twice the limit"
    )
    stuck.unlink()
    probed.wait_for("/health", 200)
    pipeline.wait_for("completed", 1)
    assert probed.worker.terminate() == 0


def test_a_blocked_loop_answers_no_probe_and_is_ended(pipeline: Pipeline) -> None:
    probed = Probed(pipeline, HANDLER_MODULES="tests.handlers,tests.stuck", STUCK="loop")
    stuck = pipeline.folder / "effects" / "loop"
    stuck.touch()
    publish(pipeline, Work())
    probed.wait_for("/health", 0)
    assert probed.worker.wait(30) == 1
    assert "CRITICAL the event loop has stood still for 11 s" in probed.worker.said()
    assert "in block_the_loop" in probed.worker.said(), "it says where"
    stuck.unlink()
    pipeline.worker().start()
    pipeline.wait_for("completed", 1)


def test_a_worker_that_was_stopped_for_longer_than_that_goes_on(pipeline: Pipeline) -> None:
    probed = Probed(pipeline)
    publish(pipeline, *[Work(work_ms=100)] * 50)
    wait_until(lambda: len(pipeline.executions()) > 2, 30, "jobs run")
    probed.worker.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 15, 20, "it was stopped for longer than the watchdog waits")
    probed.worker.process.send_signal(signal.SIGCONT)
    probed.wait_for("/health", 200)
    pipeline.wait_for("completed", 50)
    assert probed.worker.terminate() == 0
