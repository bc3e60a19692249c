"""Caps on backlogs: publishers that keep to them, and workers that see jobs out."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError

import streams.backlog
from ratelimit import AdmissionUnavailable, identity
from ratelimit.backlog import Asked, Backlog, Full, ModelBacklog
from ratelimit.control import Control
from ratelimit.model import ModelAdmission
from streams.agents.emails import SendEmail
from streams.backlog import Caps
from streams.client import Jobs, SyncJobs
from streams.errors import BacklogFull, NotAccepted, Poison, Transient
from streams.jobs import Job
from streams.publication import Publication
from streams.queues import LIFECYCLE_TOPIC
from streams.settings import load_settings
from tests.cancelling import cancel
from tests.rig import Do, Megaphone, Rig, Slow, eventually, handle
from tests.unit.test_client import SETTINGS, Broker

CAPPED = SETTINGS.model_copy(update={"publish_caps": True})
ACME = "limit:backlog:organization=acme"


def mails(*names: str, organization: str = "acme", **options: Any) -> list[Publication]:
    mail = SendEmail(template="welcome", to=["ada@example.org"], variables={})
    return [Publication(mail, organization, job_id=name, **options) for name in names]


class Counting(ModelBacklog):
    """The model, which can be away, and counts how often it is asked."""

    asked = 0
    down = False

    async def enter(self, asked: Sequence[Asked]) -> list[frozenset[str] | Full]:
        self.asked += 1
        if self.down:
            raise AdmissionUnavailable("down for the test")
        return await super().enter(asked)


@dataclass
class Office:
    """A publisher of either kind with its broker, and Redis as it knows it."""

    kind: type[Jobs] | type[SyncJobs]
    control: Megaphone = field(default_factory=Megaphone)
    backlog: Counting = field(default_factory=lambda: Counting(ModelAdmission()))
    broker: Broker = field(default_factory=lambda: Broker(lambda message: True))

    def __post_init__(self) -> None:
        self.client = self.kind(CAPPED)
        self.client._producer = self.broker
        self.client._caps = Local(self.control, self.backlog)

    def publish(self, *publications: Publication) -> list[str]:
        if isinstance(self.client, SyncJobs):
            return self.client.publish_many(publications)
        return asyncio.run(self.client.publish_many(publications))

    def say(self, name: str, value: str | None) -> None:
        """Say something, and let the publisher hear of it at its next publish."""
        asyncio.run(self.control.say({name: value}, None))
        self.client._caps._fresh_until = 0

    def count(self, organization: str = "acme") -> int:
        return asyncio.run(self.backlog.count(organization))

    @property
    def sent(self) -> int:
        return sum(message.topic != LIFECYCLE_TOPIC for message in self.broker.sent)


class Local(Caps):
    """Asks models in place of Redis."""

    def __init__(self, control: Control, backlog: Backlog) -> None:
        super().__init__(CAPPED)
        self.models = control, backlog

    def _connect(self) -> tuple[Control, Backlog]:
        return self.models


@pytest.fixture(params=[Jobs, SyncJobs])
def office(request: pytest.FixtureRequest) -> Iterator[Office]:
    office = Office(request.param)
    yield office
    office.client.close()


def test_beyond_the_cap_nothing_of_an_organization_is_sent(office: Office) -> None:
    office.say(ACME, "3")
    assert office.publish(*mails("a", "b")) == ["a", "b"]
    with pytest.raises(BacklogFull) as refused:
        office.publish(*mails("c", "d"))
    assert str(refused.value) == (
        "acme has 2 unfinished jobs and may have 3, so 2 more were refused; try again in 60 s"
    )
    assert refused.value.organizations == ("acme",)
    assert refused.value.retry_after == timedelta(minutes=1)
    assert (refused.value.accepted, refused.value.refused) == ((), ("c", "d"))
    assert office.sent == 2
    assert office.publish(*mails("c")) == ["c"]
    office.say(ACME, None)
    assert office.publish(*mails("d", "e")) == ["d", "e"]


def test_a_batch_that_never_fits_is_told_apart(office: Office) -> None:
    office.say(ACME, "1")
    with pytest.raises(BacklogFull, match=r"may have 1, so 2 more were refused; publish fewer at once$"):
        office.publish(*mails("a", "b"))


def test_jobs_of_others_are_sent_all_the_same(office: Office) -> None:
    office.say("limit:backlog:organization=*", "1")
    office.say("limit:backlog:organization=hooli", "none")
    batch = [mail for name in ("acme", "globex", "hooli") for mail in mails(name, organization=name)]
    batch += mails("acme-2", organization="acme") + mails("hooli-2", organization="hooli")
    with pytest.raises(BacklogFull, match=r"^acme has 0 ") as refused:
        office.publish(*batch)
    assert refused.value.accepted == ("globex", "hooli", "hooli-2")
    assert refused.value.refused == ("acme", "acme-2")
    assert [office.count(one) for one in ("acme", "globex", "hooli")] == [0, 1, 0]


def test_a_job_that_is_published_again_counts_once(office: Office) -> None:
    office.say(ACME, "2")
    again = [Publication(mails("x")[0].payload, "acme", idempotency_key="order-7")] * 2
    [first, second] = office.publish(*again)
    assert first == second
    assert office.publish(*again, *mails("a"), *mails("a")) == [first, first, "a", "a"]
    assert office.count() == 2
    assert office.sent == 6, "the ledger drops the copies, not the publisher"


def test_what_the_broker_did_not_take_does_not_count(office: Office) -> None:
    office.say(ACME, "3")
    office.publish(*mails("known"))
    timed_out = KafkaError(KafkaError._MSG_TIMED_OUT)
    office.broker.answer = lambda message: timed_out if message.key != b"globex" else True
    wanted = [*mails("a", "known"), *mails("other", organization="globex")]
    with pytest.raises(NotAccepted):
        office.publish(*wanted)
    office.client._caps.close()
    assert office.count() == 1, "it counted before, so it counts on"
    office.say("limit:backlog:organization=globex", "1")
    with pytest.raises(NotAccepted, match=r"accepted 0 of 1 jobs .*; globex has 0 unfinished jobs") as failed:
        office.publish(*mails("a"), *mails("b", "c", organization="globex"))
    assert failed.value.unconfirmed == ("b", "c", "a")


def test_redis_is_asked_once_a_second_and_only_about_organizations_with_a_cap(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.backlog, "HEARD_FOR", timedelta(hours=1))
    office.say(ACME, "9")
    for number in range(5):
        office.publish(*mails(f"job-{number}", organization="globex"))
    assert office.backlog.asked == 0
    office.control.down = True
    office.publish(*mails("a"))
    assert office.backlog.asked == 1, "what was heard holds for a while"


def test_without_redis_publishing_goes_on(
    office: Office, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.say(ACME, "1")
    office.publish(*mails("a"))
    office.backlog.down = True
    for number in range(3):
        office.publish(*mails(f"job-{number}"))
    assert office.backlog.asked == 2, "it is not asked again for a while"
    assert caplog.text.count("jobs are published whatever the caps on backlogs: down for the test") == 1
    office.client._caps._away_until = 0
    office.publish(*mails("job-3"))
    assert caplog.text.count("whatever the caps") == 1, "said once"
    office.client._caps._away_until = 0
    office.backlog.down = False
    with pytest.raises(BacklogFull):
        office.publish(*mails("b"))


def test_nothing_is_asked_when_it_is_switched_off() -> None:
    office = Office(SyncJobs)
    office.client._caps._away_until = Caps(SETTINGS)._away_until
    office.say(ACME, "1")
    office.publish(*mails("a", "b"))
    assert office.backlog.asked == 0
    assert office.client._caps._loop is None, "nor is a thread started"


def test_after_a_long_time_everything_is_heard_anew(office: Office) -> None:
    office.say(ACME, "1")
    office.publish(*mails("a"))
    office.control.flush()
    office.client._caps._fresh_until = 0
    with pytest.raises(BacklogFull):
        office.publish(*mails("b"))
    office.client._caps._fresh_until = office.client._caps._remembers_until = 0
    assert office.publish(*mails("b")) == ["b"], "the cap was taken back so long ago that nobody tells"


def test_a_client_that_was_closed_may_be_used_again(office: Office) -> None:
    office.say(ACME, "1")
    office.publish(*mails("a"))
    office.client._caps.close()
    with pytest.raises(BacklogFull):
        office.publish(*mails("b"))


# -- workers --------------------------------------------------------------------------------------------


async def capped(rig: Rig, *names: str, cap: str = "9") -> None:
    """Let a worker hear of a cap, and jobs in as their publisher does."""
    await rig.control.say({ACME: cap}, None)
    await rig.worker.hear()
    await rig.backlog.enter([Asked("acme", 100, [identity("acme", name) for name in names])])


@pytest.mark.usefixtures("no_handlers")
@pytest.mark.parametrize(
    ("error", "kind", "left"),
    [(None, "completed", 0), (Poison("no"), "dead", 0), (Transient("later"), "retried", 1)],
)
async def test_a_job_leaves_when_it_has_ended(error: Exception | None, kind: str, left: int) -> None:
    async def runs(job: Job[Do]) -> None:
        if error is not None:
            raise error

    handle(runs)
    async with Rig() as rig:
        await capped(rig, "job-1")
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        assert rig.kinds() == [kind]
        assert await rig.backlog.count("acme") == left


async def test_a_cancelled_job_leaves_as_does_one_that_is_refused(slow: Slow) -> None:
    async with Rig() as rig:
        await capped(rig, "cancelled", "refused", "key")
        await cancel(rig, "cancelled")
        rig.put(Do(), job_id="cancelled")
        rig.put(Do(), job_id="refused", priority=11)
        rig.put(Do(), job_id="refused-2", priority=11, idempotencyKey="key")
        await rig.settled()
        assert sorted(rig.kinds()) == ["cancelled", "dead", "dead"]
        assert await rig.backlog.count("acme") == 0


async def test_a_delivery_that_is_dropped_leaves_only_what_has_ended(slow: Slow) -> None:
    async with Rig() as rig:
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        # As it is when a worker ends between its mark and the next one.
        await capped(rig)
        rig.backlog._entered["acme"][identity("acme", "job-1")] = rig.clock()
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        assert await rig.backlog.count("acme") == 0
        await rig.backlog.enter([Asked("acme", 9, ["acme:runs"])])
        rig.put(Do(number=1), job_id="runs")
        await eventually(lambda: slow.ran[-1] == "runs")
        rig.put(Do(), job_id="runs", partition=1)
        assert await rig.backlog.count("acme") == 1
        slow.goes_on.set()
        await rig.settled()
        assert await rig.backlog.count("acme") == 0


async def test_organizations_without_a_cap_cost_no_question(slow: Slow) -> None:
    async with Rig() as rig:
        asked: list[object] = []
        leave = rig.backlog.leave

        async def noted(jobs: Any) -> None:
            asked.append(jobs)
            await leave(jobs)

        rig.backlog.leave = noted  # type: ignore[method-assign]
        rig.put(Do(), organization="acme")
        await rig.settled()
        await capped(rig)
        rig.put(Do(), organization="globex")
        await rig.settled()
        assert asked == []
        rig.put(Do(), organization="acme", job_id="a")
        await rig.settled()
        assert asked == [[("acme", "acme:a")]]


async def test_positions_wait_for_the_count_as_they_do_for_the_ledger(slow: Slow) -> None:
    async with Rig() as rig:
        await capped(rig, "job-1")
        leave, failures = rig.backlog.leave, 0

        async def fails_once(jobs: Any) -> None:
            nonlocal failures
            failures += 1
            if failures == 1:
                raise AdmissionUnavailable("down for the test")
            await leave(jobs)

        rig.backlog.leave = fails_once  # type: ignore[method-assign]
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        assert failures == 2
        assert await rig.backlog.count("acme") == 0


async def test_what_operators_say_of_weights_goes_before_what_is_configured(slow: Slow) -> None:
    options = {"organization_weights": {"acme": 2.0, "globex": 3.0}}
    async with Rig(options=options) as rig:
        window = rig.worker.pipelines["jobs.webhooks"].window
        weights: Callable[[], list[float]] = lambda: [  # noqa: E731
            window._weights(one) for one in ("acme", "globex", "initech")
        ]
        assert weights() == [2, 3, 1]
        plan = {"limit:weight:organization=plan:gold": "0.5", "plan-of:globex": "gold"}
        await rig.control.say({"limit:weight:organization=acme": "4", **plan}, None)
        await rig.worker.hear()
        assert weights() == [4, 0.5, 1]
        await rig.control.say({"limit:weight:organization=acme": None}, None)
        await rig.worker.hear()
        assert weights() == [2, 0.5, 1]


async def test_a_weight_reaches_the_lanes_that_wait_within_two_seconds(slow: Slow) -> None:
    async with Rig(options={"worker_concurrency": 1}) as rig:
        rig.put(Do(number=1), organization="globex")
        await eventually(lambda: slow.ran)
        for _ in range(300):
            rig.put(Do(), organization="acme")
        window = rig.worker.pipelines["jobs.webhooks"].window
        assert window._lanes["acme"].weight == 1
        await rig.control.say({"limit:weight:organization=acme": "4"}, None)
        await eventually(lambda: window._lanes["acme"].weight == 4, within_seconds=2)
        slow.goes_on.set()


def test_it_is_on_unless_it_is_switched_off() -> None:
    assert load_settings(_env_file=None).publish_caps
