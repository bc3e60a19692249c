"""Which cancels hold, by what was heard of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from uuid6 import uuid7

from ratelimit.control import Said
from streams.cancellation import Cancel, Cancellations, name_of
from streams.queues import EMAILS
from streams.retry import RetryForwarder
from streams.settings import load_settings
from tests.deliveries import NOON, delivery
from tests.unit.test_retry import FakeConsumer, FakeProducer, waiting

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def said(job_id: str, value: str | None, until: datetime | None = NOON + DAY) -> Said:
    return Said(1, name_of("acme", job_id), value, until)


class TestWhatIsKnown:
    def test_a_cancel_is_said_and_understood(self) -> None:
        cancel = Cancel(str(uuid7()), "é \n", "", NOON)
        assert Cancel.of_text(cancel.text(), NOON) == cancel

    def test_it_covers_the_replays_before_it(self) -> None:
        before, cancel, after = str(uuid7()), Cancel(str(uuid7()), ""), str(uuid7())
        assert [cancel.covers(replay) for replay in (None, "", before, after)] == [True, True, True, False]

    def test_what_was_told_counts_for_the_replay_of_which_it_was(self) -> None:
        replay = str(uuid7())
        first, replayed = delivery(), delivery(replay_id=replay)
        for told, expected in ((None, [False, False]), ("", [True, False]), (replay, [False, True])):
            cancel = Cancel(str(uuid7()), "", told)
            assert [cancel.outcome(one).told for one in (first, replayed)] == expected

    def test_it_is_forgotten_at_its_end_unless_it_was_said_again(self) -> None:
        known = Cancellations()
        text = Cancel(str(uuid7()), "").text()
        assert known.hear([said("acme-1", text), said("acme-2", text), said("acme-3", text, None)], NOON)
        known.hear([said("acme-2", text, NOON + 2 * DAY)], NOON)
        known.hear([], NOON + DAY - SECOND)
        assert len(known.known) == 3
        known.hear([], NOON + DAY)
        assert [number for number in (1, 2, 3) if known.of(delivery(number=number))] == [2, 3]
        known.hear([], NOON + 3 * DAY)
        assert [number for number in (1, 2, 3) if known.of(delivery(number=number))] == [3]

    def test_what_is_taken_back_no_longer_holds(self) -> None:
        known = Cancellations()
        known.hear([said("acme-1", Cancel(str(uuid7()), "").text())], NOON)
        assert known.of(delivery(number=1))
        assert known.hear([said("acme-1", None)], NOON)
        assert known.of(delivery(number=1)) is None
        known.hear([], NOON + 2 * DAY)

    def test_other_things_that_are_said_cancel_nothing(self) -> None:
        known = Cancellations()
        assert not known.hear([Said(1, "pause:emails", "{}", None)], NOON)
        assert not known.known

    @pytest.mark.parametrize(
        ("headers", "covered"),
        [
            ({"organization-id": b"acme", "ce_id": b"acme-1"}, True),
            ({"organization-id": b"acme", "ce_id": b"acme-1", "replay-id": b"ffff"}, False),
            ({"organization-id": b"globex", "ce_id": b"acme-1"}, False),
            ({"organization-id": b"acme"}, False),
            ({"organization-id": b"\xff", "ce_id": b"\xff"}, False),
            ({}, False),
        ],
    )
    def test_a_record_is_known_by_its_headers(self, headers: dict[str, bytes], covered: bool) -> None:
        known = Cancellations()
        assert not known.cover(headers)
        known.hear([said("acme-1", Cancel(str(uuid7()), "").text())], NOON)
        assert known.cover(headers) is covered


def test_a_record_in_a_retry_topic_hops_no_further_when_its_job_is_cancelled() -> None:
    known = Cancellations()
    known.hear([said("acme-1", Cancel(str(uuid7()), "").text())], NOON)
    forwarder: Any = RetryForwarder(load_settings(_env_file=None), cancelled=known.cover)
    forwarder._producer = producer = FakeProducer()
    due = b"%d" % int((datetime.now(UTC) + DAY).timestamp() * 1000)
    records = []
    for offset, job_id in enumerate([b"acme-1", b"acme-2"]):
        record = waiting(offset, timedelta(seconds=6), organization_id=b"acme", not_before=due)
        record.headers["ce_id"] = job_id
        records.append(record)
    forwarder._forward(FakeConsumer(), records)
    assert [one.topic for one in producer.sent] == [EMAILS.topic, "jobs.retry.6h"]
