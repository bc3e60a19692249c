"""The health port: what a probe is told of a worker that works, stands still, or waits for others."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import pytest

from ratelimit import AdmissionUnavailable
from streams.errors import ConfigError
from streams.health import HealthServer, Readiness, answering, life_signs
from streams.jobs import Job
from streams.progress import Progress
from streams.queues import CRITICAL, INTEGRATIONS, WEBHOOKS
from streams.retry import RetryForwarder
from streams.settings import HEALTH_PORTS, load_settings
from tests.rig import Alert, Do, Rig, Sync, eventually, handle

pytestmark = pytest.mark.usefixtures("no_handlers")


async def ask(port: int, request: bytes) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
async def rig(no_handlers: None) -> AsyncIterator[Rig]:
    async def waits(job: Job[Do]) -> None:
        await asyncio.sleep(60)

    handle(waits)
    handle(succeeds, CRITICAL)
    handle(synchronises, INTEGRATIONS)
    async with Rig(options={"worker_concurrency": 1}) as rig:
        yield rig


async def well() -> str | None:
    return None


def server(
    rig: Rig, port: int | None, progress: Progress | None = None, readiness: Readiness | None = None
) -> HealthServer:
    return HealthServer(
        load_settings(_env_file=None, worker_id="worker-1", health_port=port),
        "primary",
        rig.worker,
        progress or Progress([], well, now_s=0.0),
        readiness or Readiness([]),
    )


async def test_it_tells_what_runs_and_what_waits(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    for _ in range(3):
        rig.put(Do())
    await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
    status, told = await ask(health.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert (told["worker"], told["type"], told["status"]) == ("worker-1", "primary", "ok")
    assert told["queues"]["webhooks"] == {"running": 1, "waiting": 2, "skipped": 0}
    await health.stop()


async def test_it_is_503_when_a_duty_has_ended(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    rig.fails = True
    rig.worker.failure.set_result(RuntimeError("for the test"))
    status, told = await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n")
    assert (status, told["status"]) == (503, "failed")
    await health.stop()


@pytest.mark.parametrize(
    ("request_", "status"),
    [(b"GET / HTTP/1.1\r\n\r\n", 404), (b"\r\n\r\n", 404), (b"", 404), (b"\xff\xff \xfe\r\n\r\n", 404)],
)
async def test_anything_else_is_404(rig: Rig, request_: bytes, status: int) -> None:
    health = server(rig, 0)
    await health.start()
    assert (await ask(health.port, request_))[0] == status
    await health.stop()


async def test_an_endless_line_is_hung_up_on(rig: Rig) -> None:
    health = server(rig, 0)
    await health.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
    writer.write(b"GET /" + b"x" * 200_000)
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert (await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200
    await health.stop()


async def test_a_taken_port_is_an_error_when_it_was_asked_for_and_another_one_otherwise(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = server(rig, 0)
    await first.start()
    with pytest.raises(ConfigError, match=f"HEALTH_PORT {first.port} cannot be listened on"):
        await server(rig, first.port).start()
    monkeypatch.setitem(HEALTH_PORTS, "primary", first.port)
    second = server(rig, None)
    await second.start()
    assert second.port != first.port
    await first.stop()
    await second.stop()


class TestReady:
    async def test_it_says_what_is_missing_until_nothing_is(self, rig: Rig) -> None:
        missing: dict[str, str | None] = {
            "redis": "Redis cannot answer: no",
            "kafka": "Kafka does not answer",
        }
        now_s = 0.0

        async def redis() -> str | None:
            return missing["redis"]

        async def kafka() -> str | None:
            return missing["kafka"]

        readiness = Readiness([redis, kafka], clock=lambda: now_s)
        health = server(rig, 0, readiness=readiness)
        await health.start()
        status, told = await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n")
        assert (status, told["status"]) == (503, "not ready")
        assert told["missing"] == ["Redis cannot answer: no", "Kafka does not answer"]
        missing["redis"] = None
        assert (await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n"))[1] == told, (
            "asked again after a second"
        )
        now_s = 1.0
        status, told = await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n")
        assert (status, told["missing"]) == (503, ["Kafka does not answer"])
        assert (await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200, "no new start helps"
        missing["kafka"], now_s = None, 2.0
        status, told = await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n")
        assert (status, told) == (
            200,
            {"worker": "worker-1", "type": "primary", "status": "ready", "missing": []},
        )
        await health.stop()

    async def test_many_who_ask_at_once_are_one_question(self) -> None:
        asked = []

        async def slow() -> str | None:
            asked.append(1)
            await asyncio.sleep(0.01)
            return "not yet"

        readiness = Readiness([slow], clock=lambda: 0.0)
        answers = await asyncio.gather(*(readiness.missing() for _ in range(20)))
        assert answers == [["not yet"]] * 20
        assert len(asked) == 1

    async def test_redis_is_asked_by_a_ping(self) -> None:
        async def refuses() -> None:
            raise AdmissionUnavailable("Redis cannot answer: no route")

        async def answers() -> None:
            return None

        assert await answering(refuses)() == "Redis cannot answer: no route"
        assert await answering(answers)() is None

    async def test_a_worker_that_has_failed_is_not_ready(self, rig: Rig) -> None:
        health = server(rig, 0)
        await health.start()
        rig.fails = True
        rig.worker.failure.set_result(RuntimeError("for the test"))
        status, told = await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n")
        assert (status, told["missing"]) == (503, ["the worker has failed and ends"])
        await health.stop()


@dataclass
class Fetching:
    """A consumer that does what a test says."""

    rounds: int = 0
    assignments: int = 1
    commits: int = 0
    flows: bool = True
    behind: bool = False


@dataclass
class Forwarder:
    """The part of a forwarder that is looked at."""

    rounds: int = 0
    forwards: bool = True


class Watched:
    """A rig with a consumer and a forwarder that go on unless a test stops them, looked at second by second."""

    def __init__(self, rig: Rig) -> None:
        self.fetching = Fetching()
        self.forwarder = Forwarder()
        self.fetches = self.forwarding = True
        self.broker: str | None = None
        self.now_s = 0.0
        settings = load_settings(_env_file=None)
        signs = life_signs(rig.worker, self.fetching, cast(RetryForwarder, self.forwarder), settings)
        self.progress = Progress(signs, self.trouble, now_s=0.0)

    async def trouble(self) -> str | None:
        return self.broker

    async def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.forwarder.rounds += self.forwarding
            self.fetching.rounds += self.fetches
            await self.progress.look(self.now_s)
            await asyncio.sleep(0)


class TestLive:
    async def test_a_worker_without_jobs_and_one_whose_slots_are_taken_are_live(self, rig: Rig) -> None:
        watched = Watched(rig)
        await watched.pass_time(600)
        assert watched.progress.stalled == []
        for _ in range(3):
            rig.put(Do())
        await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
        await watched.pass_time(600)
        assert watched.progress.stalled == [], "a job that runs for long is a matter of its timeout"

    async def test_health_is_503_with_a_sentence_that_names_what_stands_still(self, rig: Rig) -> None:
        watched = Watched(rig)
        health = server(rig, 0, watched.progress)
        await health.start()
        watched.forwarding = False
        await watched.pass_time(61)
        status, told = await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n")
        assert (status, told["status"]) == (503, "stalled")
        (sentence,) = told["stalled"]
        assert sentence.startswith("the retry forwarder has not gone round for 6")
        assert told["queues"]["webhooks"] == {"running": 0, "waiting": 0, "skipped": 0}
        assert (await ask(health.port, b"GET /ready HTTP/1.0\r\n\r\n"))[0] == 503
        watched.forwarding = True
        await watched.pass_time(1)
        assert (await ask(health.port, b"GET /health HTTP/1.0\r\n\r\n"))[0] == 200
        await health.stop()

    async def test_a_fetching_loop_that_stands_is_told_but_not_while_a_rebalance_stops_it(
        self, rig: Rig
    ) -> None:
        watched = Watched(rig)
        watched.fetches = False
        watched.fetching.flows = False
        await watched.pass_time(200)
        assert watched.progress.stalled == []
        watched.fetching.flows = True
        await watched.pass_time(61)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith("the fetching loop has not gone round for 6")

    async def test_a_rebalance_that_never_ends_is_told_after_five_minutes_and_one_after_another_is_not(
        self, rig: Rig
    ) -> None:
        watched = Watched(rig)
        watched.fetching.flows = False
        for _ in range(10):
            watched.fetching.assignments += 1
            await watched.pass_time(100)
        assert watched.progress.stalled == []
        await watched.pass_time(211)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith("no partitions were assigned and no rebalance has ended for 31")

    async def test_positions_that_cannot_be_committed_are_told(self, rig: Rig) -> None:
        watched = Watched(rig)
        watched.fetching.behind = True
        for _ in range(10):
            watched.fetching.commits += 1
            await watched.pass_time(100)
        assert watched.progress.stalled == []
        await watched.pass_time(201)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith("positions have moved, and none was committed for 30")

    async def test_outcomes_that_are_not_settled_are_told_unless_the_broker_is_away(self, rig: Rig) -> None:
        watched = Watched(rig)
        rig.producer.open.clear()
        rig.put(Alert())
        await eventually(lambda: rig.worker.settlement.has_outcomes)
        watched.broker = "Kafka does not answer"
        await watched.pass_time(600)
        assert watched.progress.stalled == []
        watched.broker = None
        await watched.pass_time(61)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith("outcomes wait, and none was settled for 6")
        rig.producer.open.set()
        await eventually(lambda: not rig.worker.settlement.has_outcomes)
        await watched.pass_time(1)
        assert watched.progress.stalled == []

    async def test_a_queue_whose_question_is_never_answered_is_told(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()
        admit = rig.ledger.admit

        async def never(candidates: Any) -> Any:
            asked.set()
            await answer.wait()
            return await admit(candidates)

        monkeypatch.setattr(rig.ledger, "admit", never)
        watched = Watched(rig)
        rig.put(Do())
        await asked.wait()
        assert rig.worker.pipelines[WEBHOOKS.topic].window.records == 0, "what is asked for is nowhere else"
        await watched.pass_time(61)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith(
            "webhooks has jobs to run and a slot for them, and admitted and finished none"
        )
        answer.set()
        await eventually(lambda: rig.worker.pipelines[WEBHOOKS.topic].runs.leased())
        await watched.pass_time(1)
        assert watched.progress.stalled == []

    async def test_a_queue_that_nobody_wakes_is_told(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = rig.worker.pipelines[WEBHOOKS.topic]
        monkeypatch.setattr(pipeline._wake, "set", lambda: None)
        watched = Watched(rig)
        rig.put(Do())
        await watched.pass_time(61)
        (sentence,) = watched.progress.stalled
        assert sentence.startswith("webhooks has jobs to run")

    async def test_jobs_that_wait_for_redis_or_for_a_limit_are_no_standing_still(self, rig: Rig) -> None:
        for number in range(30):
            rig.put(Sync(number=number))
        limited = rig.worker.pipelines[INTEGRATIONS.topic]
        await eventually(lambda: limited.window.records and not limited.could_go_on)
        rig.ledger.down = True
        rig.put(Do())
        asking = rig.worker.pipelines[WEBHOOKS.topic]
        await eventually(lambda: asking.window.records and not asking.could_go_on)
        asked = asking.rounds
        await eventually(lambda: asking.rounds > asked + 1, "it shows that it keeps asking")


async def succeeds(job: Job[Alert]) -> None:
    return None


async def synchronises(job: Job[Sync]) -> None:
    return None
