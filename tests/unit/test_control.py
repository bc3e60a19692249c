"""Cancelling from the operator's side: what is said, what is told, what the command answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import KafkaError
from uuid6 import uuid7

from cli.cancel import sentence
from cli.main import main
from ratelimit import AdmissionUnavailable
from ratelimit.backlog import Asked, Left, ModelBacklog
from ratelimit.control import Listener, ModelControl
from ratelimit.model import ModelAdmission
from schemas import Codec, files
from streams import client, control
from streams.cancellation import Cancel
from streams.control import Cancellation
from streams.errors import InvalidJob, NotCancelled
from streams.lifecycle import Lifecycle
from streams.producer import Message, Producer, Sending
from streams.queues import LIFECYCLE_TOPIC
from streams.settings import load_settings
from tests.deliveries import NOON
from tracking.events import event_of
from tracking.fold import fold
from tracking.jobs import Job
from tracking.states import Status

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
EVENTS = Codec(files.current(files.LIFECYCLE))


class Broker(Producer):
    """Takes what it is given, or refuses it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.refuses = False

    async def send_each(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        sending = Sending(len(messages))
        for index, message in enumerate(messages):
            self.sent.append(message)
            sending.reporter(index)(KafkaError(KafkaError._MSG_TIMED_OUT) if self.refuses else None, None)
        return sending

    def close(self, timeout: timedelta = timedelta(0)) -> int:
        return 0

    def events(self) -> list[dict[str, Any]]:
        assert {one.topic for one in self.sent} <= {LIFECYCLE_TOPIC}
        return [EVENTS.decode(one.value or b"") for one in self.sent]


def stored(job_id: str, status: Status, **changes: Any) -> Job:
    facts: dict[str, Any] = {
        **dict.fromkeys(field.name for field in fields(Job)),
        "organization_id": "acme", "job_id": job_id, "job_type": "email.send", "queue_name": "emails",
        "status": str(status), "queued_at": NOON, "attempt": 1, "max_attempts": 3, "snoozes": 0, **changes,
    }  # fmt: skip
    return Job(**facts)


class Desk:
    """What an operator's cancel touches."""

    def __init__(self) -> None:
        self.control = ModelControl()
        self.ledger = ModelAdmission()
        self.backlog = ModelBacklog(self.ledger)
        self.broker = Broker()
        self.store: dict[str, Job] | None = {}
        self.order: list[str] = []

    async def cancel(self, *job_ids: str, reason: str = "", organization: str = "acme") -> list[Cancellation]:
        return await control.cancel(
            job_ids, organization, reason=reason, control=self.control, backlog=self.backlog, keep=DAY,
            database_url="the store", lifecycle=Lifecycle(EVENTS), producer=self.broker, timeout=SECOND,
        )  # fmt: skip

    async def said(self) -> dict[str, Cancel]:
        news = await Listener(self.control).news()
        return {one.name: Cancel.of_text(one.value or "") for one in news}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk()

    def known(url: str | None, organization_id: str, job_ids: Sequence[str]) -> Mapping[str, Job] | None:
        assert organization_id == "acme"
        return None if desk.store is None else {one: desk.store[one] for one in job_ids if one in desk.store}

    class Redis:
        @staticmethod
        def from_url(url: str, prefix: str) -> ModelControl:
            assert (url, prefix) == ("redis://127.0.0.1:6379/0", "streams")
            return desk.control

    monkeypatch.setattr(control, "known_jobs", known)

    class Counted:
        @staticmethod
        def from_url(url: str, prefix: str, keep: timedelta) -> ModelBacklog:
            assert (url, prefix, keep) == ("redis://127.0.0.1:6379/0", "streams", timedelta(days=7))
            return desk.backlog

    monkeypatch.setattr(control, "RedisControl", Redis)
    monkeypatch.setattr(control, "RedisBacklog", Counted)
    return desk


class TestCancel:
    @pytest.mark.parametrize("status", [Status.QUEUED, Status.DELAYED, Status.RETRYING, Status.WAITING])
    async def test_of_a_job_that_waits_the_end_is_told_at_once(self, desk: Desk, status: Status) -> None:
        desk.store = {"job-1": stored("job-1", status, attempt=2, snoozes=4, origin="jobs.emails/1/7")}
        [found] = await desk.cancel("job-1", reason="wrong list")
        assert found == Cancellation("acme", "job-1", True, status, True)
        [event] = desk.broker.events()
        assert (event["kind"], event["attempt"], event["snoozes"]) == ("cancelled", 2, 4)
        assert (event["reason"], event["origin"], event["startedAt"]) == (
            "wrong list",
            "jobs.emails/1/7",
            None,
        )
        cancel = (await desk.said())["cancel:acme:job-1"]
        assert (cancel.by, cancel.told) == ("wrong list", "")

    @pytest.mark.parametrize("status", [Status.RUNNING, Status.COMPLETED, Status.DEAD, Status.CANCELLED])
    async def test_of_one_that_runs_or_has_ended_only_workers_are_told(
        self, desk: Desk, status: Status
    ) -> None:
        desk.store = {"job-1": stored("job-1", status)}
        assert await desk.cancel("job-1") == [Cancellation("acme", "job-1", True, status)]
        assert desk.broker.sent == []
        cancel = (await desk.said())["cancel:acme:job-1"]
        assert (cancel.by, cancel.told) == ("cancelled by an operator", None)

    async def test_one_that_waits_leaves_its_organizations_backlog_at_once(self, desk: Desk) -> None:
        await desk.backlog.enter([Asked("acme", 9, ["acme:waits", "acme:runs", "acme:unknown"])])
        desk.store = {"waits": stored("waits", Status.DELAYED), "runs": stored("runs", Status.RUNNING)}
        await desk.cancel("waits", "runs", "unknown")
        assert await desk.backlog.count("acme") == 2
        await desk.backlog.leave([Left("acme", "acme:waits")])
        assert await desk.backlog.count("acme") == 2, "it was that one"

    async def test_that_redis_does_not_count_for_now_is_no_reason_to_fail(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def down(jobs: object) -> None:
            raise AdmissionUnavailable("Redis cannot answer: away")

        monkeypatch.setattr(desk.backlog, "leave", down)
        desk.store = {"a": stored("a", Status.QUEUED)}
        assert (await desk.cancel("a"))[0].told
        assert "1 cancelled jobs count in the backlog until workers meet them" in caplog.text

    async def test_one_that_the_store_does_not_know_is_cancelled_all_the_same(self, desk: Desk) -> None:
        assert await desk.cancel("job-1") == [Cancellation("acme", "job-1", True)]
        assert "cancel:acme:job-1" in await desk.said()

    async def test_without_a_store_too(self, desk: Desk) -> None:
        desk.store = None
        assert await desk.cancel("b", "a", "b") == [
            Cancellation("acme", "b", False),
            Cancellation("acme", "a", False),
        ]
        assert set(await desk.said()) == {"cancel:acme:a", "cancel:acme:b"}

    async def test_the_event_of_a_replayed_job_belongs_to_its_replay(self, desk: Desk) -> None:
        replay = str(uuid7())
        desk.store = {"job-1": stored("job-1", Status.QUEUED, replay_id=replay)}
        await desk.cancel("job-1")
        assert desk.broker.events()[0]["replayId"] == replay
        cancel = (await desk.said())["cancel:acme:job-1"]
        assert cancel.told == replay
        assert cancel.covers(replay)

    async def test_an_event_that_the_broker_did_not_take_is_left_to_the_worker(self, desk: Desk) -> None:
        desk.store = {"job-1": stored("job-1", Status.QUEUED)}
        desk.broker.refuses = True
        assert await desk.cancel("job-1") == [Cancellation("acme", "job-1", True, Status.QUEUED)]
        assert (await desk.said())["cancel:acme:job-1"].told is None

    async def test_without_redis_nothing_is_told_to_anyone(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def down(values: object, keep: object) -> None:
            raise AdmissionUnavailable("Redis cannot answer: away")

        monkeypatch.setattr(desk.control, "say", down)
        desk.store = {"job-1": stored("job-1", Status.QUEUED)}
        with pytest.raises(NotCancelled, match=r"^no worker was told to cancel: Redis cannot answer: away$"):
            await desk.cancel("job-1")
        assert desk.broker.sent == []

    async def test_redis_going_away_between_costs_a_second_event_only(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        say, calls = desk.control.say, 0

        async def once(values: Mapping[str, str | None], keep: timedelta | None) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise AdmissionUnavailable("away")
            await say(values, keep)

        monkeypatch.setattr(desk.control, "say", once)
        desk.store = {"job-1": stored("job-1", Status.QUEUED)}
        [found] = await desk.cancel("job-1")
        assert found.told
        assert "workers will tell again of 1 jobs" in caplog.text

    @pytest.mark.parametrize(
        ("organization", "job_id"), [("", "job-1"), ("a:b", "job-1"), ("acme", ""), ("acme", "a b")]
    )
    async def test_what_is_no_id_is_refused(self, desk: Desk, organization: str, job_id: str) -> None:
        with pytest.raises(InvalidJob, match="must be 1 to 128 letters"):
            await desk.cancel("fine", job_id, organization=organization)
        assert await desk.said() == {}

    @pytest.mark.parametrize(
        ("later", "stays"),
        [
            ({"kind": "started", "attempt": 1}, "cancelled"),
            ({"kind": "retried", "attempt": 3}, "cancelled"),
            ({"kind": "snoozed", "attempt": 2, "snoozes": 9}, "cancelled"),
            ({"kind": "completed", "attempt": 1}, "completed"),
            ({"kind": "dead", "attempt": 2}, "dead"),
            ({"kind": "replayed", "attempt": 1, "replayId": str(uuid7())}, "queued"),
        ],
    )
    async def test_the_event_gives_way_to_what_a_worker_did_meanwhile(
        self, desk: Desk, later: dict[str, Any], stays: str
    ) -> None:
        desk.store = {"job-1": stored("job-1", Status.RETRYING, attempt=1)}
        await desk.cancel("job-1")
        [told] = desk.broker.events()
        other = {**told, **later, "eventId": str(uuid7()), "at": told["at"] + SECOND}
        for order in ([told, other], [other, told]):
            [row] = fold(map(event_of, order))
            assert row["status"] == stays


def test_a_store_that_does_not_answer_is_as_good_as_none(caplog: pytest.LogCaptureFixture) -> None:
    assert control.known_jobs(None, "acme", ["job-1"]) is None
    assert not caplog.records
    assert control.known_jobs("postgresql://nobody@127.0.0.1:1/nothing", "acme", ["job-1"]) is None
    assert "the store was not asked about the jobs" in caplog.text


class TestCommand:
    def run(self, *arguments: str, given: str | None = None) -> Result:
        return CliRunner().invoke(main, ["cancel", *arguments], input=given)

    @pytest.fixture(autouse=True)
    def _desk(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        class Client(client.SyncJobs):
            def __init__(self) -> None:
                super().__init__(load_settings(_env_file=None))
                self._producer = desk.broker

        monkeypatch.setattr("cli.cancel.SyncJobs", Client)

    def test_it_says_what_became_of_each(self, desk: Desk) -> None:
        desk.store = {"a": stored("a", Status.RETRYING), "b": stored("b", Status.RUNNING)}
        done = self.run("a", "b", "c", "--org", "acme")
        assert done.exit_code == 0
        assert done.stdout.splitlines() == [
            "a of acme: cancelled, it was retrying",
            "b of acme: it was running, and its worker ends it",
            "c of acme: all workers are told, but the store knows no such job",
        ]

    def test_json_is_one_object_a_line(self, desk: Desk) -> None:
        desk.store = {"a": stored("a", Status.QUEUED)}
        done = self.run("a", "b", "--org", "acme", "--json", "--reason", "why")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [
            {"organizationId": "acme", "jobId": "a", "state": "queued", "told": True},
            {"organizationId": "acme", "jobId": "b", "state": None, "told": False},
        ]
        assert desk.broker.events()[0]["reason"] == "why"

    def test_ids_may_come_from_standard_input(self) -> None:
        done = self.run("--org", "acme", given="a\n\n  b \n")
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["a", "b"]

    def test_no_id_and_no_organization_are_said(self) -> None:
        none = self.run("--org", "acme", given="\n")
        assert (none.exit_code, none.stderr.startswith("Error: no job id was given")) == (1, True)
        assert "Missing option '--org'" in self.run("a").stderr

    def test_redis_down_is_one_sentence(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        async def down(values: object, keep: object) -> None:
            raise AdmissionUnavailable("Redis cannot answer: away")

        monkeypatch.setattr(desk.control, "say", down)
        done = self.run("a", "--org", "acme")
        assert done.exit_code == 1
        assert done.stderr == "Error: no worker was told to cancel: Redis cannot answer: away\n"

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            (Cancellation("acme", "a", True, Status.COMPLETED), "was completed already"),
            (Cancellation("acme", "a", False), "the store was not asked"),
            (Cancellation("acme", "a", True, Status.QUEUED), "the broker did not take the event"),
        ],
    )
    def test_every_finding_has_a_sentence(self, found: Cancellation, said: str) -> None:
        assert said in sentence(found)


async def test_the_asyncio_client_cancels_too(desk: Desk) -> None:
    desk.store = {"a": stored("a", Status.QUEUED)}
    async with client.Jobs(load_settings(_env_file=None)) as jobs:
        jobs._producer = desk.broker
        [found] = await jobs.cancel("a", organization_id="acme")
    assert found.told
    with client.SyncJobs(load_settings(_env_file=None)) as blocking:
        blocking._producer = desk.broker
        assert blocking.cancel("a", organization_id="acme")[0].told, "with a loop that runs around it"
