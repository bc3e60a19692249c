"""What is kept of jobs that run one after the other, over the model and over Redis."""

from datetime import timedelta

import pytest

from ratelimit import Done, InLine, Released, Waiting, fence
from ratelimit.redis import BATCH_MAX
from tests.admission import FIRST, SECOND, Subject

MINUTE = timedelta(minutes=1)


LINE = "queue:acme:k"


def place(rank: int, identity: str = "acme:1", *, line: str = LINE, fence: str = FIRST) -> InLine:
    return InLine(line, rank, identity, fence)


async def keep(subject: Subject, *places: InLine) -> None:
    await subject.admission.keep_in_line([(one, subject.clock() + MINUTE) for one in places])


async def is_ahead(subject: Subject, rank: int, line: str = LINE) -> bool:
    [due] = await subject.admission.ahead([place(rank, "acme:other", line=line)])
    return due is not None


async def test_what_is_kept_is_ahead_of_every_higher_rank_of_its_line(subject: Subject) -> None:
    now = subject.clock()
    assert not await is_ahead(subject, 7)
    places = [(place(rank, f"acme:{rank}"), now + rank * MINUTE) for rank in (10, 9, 100)]
    await subject.admission.keep_in_line(places)
    asked = [place(rank, "acme:other") for rank in (8, 9, 10, 99, 101)]
    assert await subject.admission.ahead(asked) == [None, None, *[now + 9 * MINUTE] * 3]
    assert not await is_ahead(subject, 101, line="queue:acme:l")
    await subject.admission.keep_in_line([(place(9, "acme:9"), now + 30 * MINUTE)])
    assert await subject.admission.ahead([asked[2]]) == [now + 30 * MINUTE]


@pytest.mark.parametrize("end", [Done(), Waiting(FIRST + "~")])
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_place_is_kept_until_its_job_is_done_or_dead(
    subject: Subject, end: Done | Waiting, leaves: bool
) -> None:
    run = await subject.run("acme:1")
    await keep(subject, place(1), place(2, "acme:2"))
    await subject.admission.leave_lines([place(1)])
    assert await is_ahead(subject, 2), "it runs"
    assert await subject.settle("acme:1", run, end)
    if leaves:
        await subject.admission.leave_lines([place(1)])
    assert not await is_ahead(subject, 2)
    assert await is_ahead(subject, 3), "that of another job"


async def test_a_place_is_kept_while_its_delivery_waits_and_not_for_a_later_one(subject: Subject) -> None:
    run = await subject.run("acme:1")
    await keep(subject, place(1, fence=SECOND))
    assert await subject.settle("acme:1", run, Waiting(SECOND))
    await subject.admission.leave_lines([place(1)])
    assert await is_ahead(subject, 2), "it waits for the very delivery that keeps the place"
    again = await subject.run("acme:1", SECOND)
    assert await is_ahead(subject, 2), "that one runs"
    assert await subject.settle("acme:1", again, Waiting(fence("", 3, 0)))
    assert not await is_ahead(subject, 2)


async def test_a_late_word_of_an_earlier_delivery_takes_no_place_away(subject: Subject) -> None:
    run = await subject.run("acme:1")
    await keep(subject, place(1, fence=SECOND))
    assert await subject.settle("acme:1", run, Waiting(SECOND))
    await keep(subject, place(1, fence=FIRST))
    assert await is_ahead(subject, 2)


async def test_a_place_that_is_kept_too_late_counts_for_nothing(subject: Subject) -> None:
    run = await subject.run("acme:1")
    assert await subject.settle("acme:1", run, Done())
    await keep(subject, place(1))
    assert not await is_ahead(subject, 2)


async def test_what_is_long_overdue_may_be_passed(subject: Subject) -> None:
    now = subject.clock()
    await subject.admission.keep_in_line([(place(1), now), (place(2, "acme:2"), now + MINUTE)])
    behind = [place(3, "acme:3")]
    assert await subject.admission.ahead(behind, overdue=now) == [now]
    assert await subject.admission.ahead(behind, overdue=now + MINUTE) == [now + MINUTE]
    assert await subject.admission.ahead(behind, overdue=now + 2 * MINUTE) == [None]


async def test_a_lease_that_was_given_back_leaves_no_place(subject: Subject) -> None:
    await keep(subject, place(1))
    run = await subject.run("acme:1")
    assert await subject.settle("acme:1", run, Released())
    await subject.admission.leave_lines([place(1)])
    assert await is_ahead(subject, 2)


async def test_a_flushed_ledger_forgets_the_places(subject: Subject) -> None:
    await keep(subject, place(1))
    await subject.flush()
    assert not await is_ahead(subject, 2)


@pytest.mark.parametrize("odd", ["queue:acme: a  b\n", "queue:acme:\x00\r\n$5", "queue:акме:ключ"])
async def test_lines_and_identities_are_any_text(subject: Subject, odd: str) -> None:
    run = await subject.run(odd)
    await keep(subject, place(1, odd, line=odd))
    assert await is_ahead(subject, 2, odd)
    assert not await is_ahead(subject, 2, odd + "x")
    assert await subject.settle(odd, run, Done())
    assert not await is_ahead(subject, 2, odd)


async def test_a_batch_may_be_longer_than_a_round_trip_takes(subject: Subject) -> None:
    due = subject.clock().replace(microsecond=0)
    places = [place(5, f"acme:{number}", line=f"queue:acme:{number}") for number in range(BATCH_MAX + 10)]
    await subject.admission.keep_in_line([(one, due) for one in places])
    behind = [place(6, "acme:other", line=one.line) for one in places]
    assert await subject.admission.ahead(behind) == [due] * len(places)
    await subject.admission.leave_lines(places)
    assert await subject.admission.ahead(behind) == [due] * len(places)
    assert await subject.admission.ahead([]) == []
