"""Which dead letters are meant, and how they come back."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import KafkaError

from ratelimit import Candidate, Done, Mark, Run, fence, identity
from schemas import Codec, files
from streams.consuming import Consumed
from streams.delivery import milliseconds
from streams.errors import NotAccepted
from streams.jobs import Job
from streams.lifecycle import Lifecycle
from streams.producer import Message, Producer, Sending
from streams.queues import LIFECYCLE_TOPIC, WEBHOOKS
from streams.replay import CARRIED, Letter, Selection, _letter, latest, replay, unfinished
from tests.deliveries import NOON
from tests.rig import Do, Ledger, Rig, eventually, handle, headers_of

EVENTS = Codec(files.current(files.LIFECYCLE))
SECOND = timedelta(seconds=1)


def letter(
    job_id: str | None = "job-1", organization: str = "acme", number: int = 0, **headers: bytes
) -> Letter:
    job: dict[str, Any] = {
        "jobId": job_id, "jobType": "test.do", "organizationId": organization, "createdAt": NOON,
        "idempotencyKey": None, "maxAttempts": None,
    }  # fmt: skip
    stated = {name.replace("_", "-"): raw for name, raw in headers.items()}
    return Letter(
        WEBHOOKS, f"jobs.webhooks.dlt/0/{number}", organization.encode(), b"the job", stated,
        job if job_id else None, NOON + number * SECOND,
    )  # fmt: skip


class Answering(Producer):
    """Confirms what it is given, but for messages with some keys."""

    def __init__(self, *unconfirmed: bytes) -> None:
        self.sent: list[Message] = []
        self._unconfirmed = unconfirmed

    def send_blocking(self, messages: Sequence[Message], timeout: timedelta) -> Sending:
        self.sent += messages
        sending = Sending(len(messages))
        for index, message in enumerate(messages):
            if message.key not in self._unconfirmed:
                sending.reporter(index)(None, None)
            elif message.key == b"refused":
                sending.reporter(index)(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
        return sending


def test_a_selection_narrows_by_each_of_its_parts() -> None:
    one = letter(number=5)
    assert Selection().has(one)
    assert Selection("acme", "test.do", "job-1", NOON + 5 * SECOND).has(one)
    for selection in (
        Selection(organization_id="globex"),
        Selection(job_type="test.undo"),
        Selection(job_id="job-2"),
        Selection(since=NOON + 6 * SECOND),
    ):
        assert not selection.has(one)


def test_what_cannot_be_read_goes_by_its_key_and_headers() -> None:
    record = Consumed(
        WEBHOOKS.dead_letter_topic, 1, 2, milliseconds(NOON), b"acme\xff", b"garbage", {"ce_id": b"job-9"}
    )
    one = _letter(WEBHOOKS, record, EVENTS)
    assert (one.job, one.organization_id, one.job_id, one.job_type) == (None, "acme�", "job-9", "")
    assert one.failed_at == NOON


def test_of_each_job_of_each_organization_the_last_letter_counts() -> None:
    found = [
        letter(number=0), letter(number=1), letter(number=2, organization="globex"),
        letter(None, number=3), letter(None, number=4),
    ]  # fmt: skip
    assert [one.place[-1] for one in latest(found)] == ["1", "2", "3", "4"]


async def test_jobs_that_have_completed_since_are_left_alone() -> None:
    ledger = Ledger(lease=SECOND)
    (answer,) = await ledger.admit([Candidate(identity("acme", "job-1"), fence("", 1, 0))])
    assert isinstance(answer, Run)
    await ledger.settle([Mark(identity("acme", "job-1"), answer.token, Done())])
    found = [letter(), letter(organization="globex", number=1), letter(None, number=2)]
    assert await unfinished(found, ledger) == found[1:]


async def test_without_redis_all_are_replayed_and_the_ledger_sorts_them_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ratelimit import AdmissionUnavailable

    async def away(identities: Sequence[str]) -> list[bool]:
        raise AdmissionUnavailable("away")

    ledger = Ledger(lease=SECOND)
    monkeypatch.setattr(ledger, "completed", away)
    assert await unfinished([letter()], ledger) == [letter()]


def test_a_replay_begins_anew_with_the_same_bytes() -> None:
    producer = Answering()
    carried: dict[str, Any] = {name.replace("-", "_"): b"old" for name in CARRIED}
    dead = letter(
        traceparent=b"00-1", origin=b"jobs.webhooks/0/7" + b"x" * 5000, replay_id=b"an earlier one", **carried
    )
    replay_id = replay(
        [dead, letter(None, number=1)], producer, Lifecycle(EVENTS), reason="fi\ud800xed", timeout=SECOND
    )
    first, second, told = producer.sent
    assert (first.topic, first.key, first.value) == (WEBHOOKS.topic, b"acme", b"the job")
    headers = headers_of(first)
    assert not set(headers) & CARRIED
    assert headers["replay-id"] == replay_id
    assert headers["traceparent"] == "00-1"
    assert headers_of(second)["origin"] == "jobs.webhooks.dlt/0/1"
    assert told.topic == LIFECYCLE_TOPIC
    event = EVENTS.decode(told.value or b"")
    assert (event["kind"], event["replayId"], event["reason"]) == ("replayed", replay_id, "fi?xed")


def test_it_says_what_was_and_what_was_not_confirmed() -> None:
    found = [letter("a"), letter("b", "lost"), letter("c", "refused")]
    with pytest.raises(NotAccepted, match="1 of 3 dead letters were replayed") as refused:
        replay(found, Answering(b"lost", b"refused"), Lifecycle(EVENTS), reason="", timeout=SECOND)
    assert refused.value.accepted == ("a",)
    assert refused.value.unconfirmed == ("b", "c")


@pytest.mark.usefixtures("no_handlers")
async def test_what_is_replayed_passes_the_fence_of_the_dead_and_dies_or_completes_anew() -> None:
    fixed: list[bool] = []

    async def works_once_fixed(job: Job[Do]) -> None:
        if not fixed:
            from streams.errors import Poison

            raise Poison("not fixed yet")

    handle(works_once_fixed)
    async with Rig() as rig:
        rig.put(Do(), job_id="job-1")
        await rig.settled()
        for round_ in range(3):
            fixed += [True] * (round_ == 1)
            dead = rig.written(WEBHOOKS.dead_letter_topic)[-1]
            record = Consumed(
                dead.topic,
                0,
                round_,
                0,
                dead.key,
                dead.value,
                {k: bytes(v) for k, v in dead.headers or [] if v},  # type: ignore[arg-type]
            )
            one = _letter(WEBHOOKS, record, rig.codecs[WEBHOOKS.name])
            assert one.job_id == "job-1"
            producer = Answering()
            replay([one], producer, Lifecycle(EVENTS), reason="", timeout=SECOND)
            rig.put_again(producer.sent[0])
            await rig.settled()
        await eventually(lambda: rig.kinds() == ["dead", "dead", "completed"])
