"""What is kept of jobs that run one after the other, over the model and over Redis."""

from datetime import timedelta

import pytest

from ratelimit import Done, InLine, Released, Waiting
from ratelimit.redis import BATCH_MAX
from tests.admission import FIRST, SECOND, Subject

MINUTE = timedelta(minutes=1)


async def ahead(subject: Subject, *ranks: int, line: str = "queue:acme:k") -> list[object]:
    return list(await subject.admission.ahead([InLine(line, rank) for rank in ranks]))


async def test_what_is_kept_is_ahead_of_every_higher_rank_of_its_line(subject: Subject) -> None:
    now = subject.clock()
    assert await ahead(subject, 0, 7) == [None, None]
    places = [(InLine("queue:acme:k", rank), now + rank * MINUTE) for rank in (10, 9, 100)]
    await subject.admission.keep_in_line(places)
    assert await ahead(subject, 8, 9, 10, 99, 101) == [None, None, *[now + 9 * MINUTE] * 3]
    assert await ahead(subject, 101, line="queue:acme:l") == [None]
    await subject.admission.keep_in_line([(InLine("queue:acme:k", 9), now + 30 * MINUTE)])
    assert await ahead(subject, 10) == [now + 30 * MINUTE]


async def test_a_place_is_left_when_its_job_is_done_or_dead(subject: Subject) -> None:
    place, other = InLine("queue:acme:k", 1), InLine("queue:acme:k", 2)
    ends: list[Done | Waiting] = [Done(), Waiting(FIRST + "~")]
    for number, end in enumerate(ends):
        identity = f"acme:{number}"
        run = await subject.run(identity)
        await subject.admission.keep_in_line([(place, subject.clock()), (other, subject.clock())])
        await subject.admission.leave_lines([(place, identity, True)])
        assert await ahead(subject, 2) != [None], "it runs"
        assert await subject.settle(identity, run, end)
        await subject.admission.leave_lines([(place, identity, False)])
        assert await ahead(subject, 2) == [None]
        assert await ahead(subject, 3) != [None]


async def test_a_place_is_kept_while_its_job_waits_unless_that_may_be_passed(subject: Subject) -> None:
    place = InLine("queue:acme:k", 1)
    await subject.admission.keep_in_line([(place, subject.clock())])
    run = await subject.run("acme:1")
    assert await subject.settle("acme:1", run, Waiting(SECOND))
    await subject.admission.leave_lines([(place, "acme:1", False)])
    assert await ahead(subject, 2) != [None]
    await subject.admission.leave_lines([(place, "acme:1", True)])
    assert await ahead(subject, 2) == [None]


async def test_a_lease_that_was_given_back_leaves_no_place(subject: Subject) -> None:
    place = InLine("queue:acme:k", 1)
    await subject.admission.keep_in_line([(place, subject.clock())])
    run = await subject.run("acme:1")
    assert await subject.settle("acme:1", run, Released())
    await subject.admission.leave_lines([(place, "acme:1", False)])
    assert await ahead(subject, 2) != [None]


async def test_a_flushed_ledger_forgets_the_places(subject: Subject) -> None:
    await subject.admission.keep_in_line([(InLine("queue:acme:k", 1), subject.clock())])
    await subject.flush()
    assert await ahead(subject, 2) == [None]


@pytest.mark.parametrize("odd", ["queue:acme: a  b\n", "queue:acme:\x00\r\n$5", "queue:акме:ключ"])
async def test_lines_are_any_text(subject: Subject, odd: str) -> None:
    await subject.admission.keep_in_line([(InLine(odd, 1), subject.clock())])
    assert await ahead(subject, 2, line=odd) != [None]
    assert await ahead(subject, 2, line=odd + "x") == [None]


async def test_a_batch_may_be_longer_than_a_round_trip_takes(subject: Subject) -> None:
    places = [InLine(f"queue:acme:{number}", 5) for number in range(BATCH_MAX + 10)]
    due = subject.clock().replace(microsecond=0)
    await subject.admission.keep_in_line([(place, due) for place in places])
    behind = [InLine(place.line, 6) for place in places]
    assert await subject.admission.ahead(behind) == [due] * len(places)
    await subject.admission.leave_lines([(place, "acme:none", False) for place in places])
    assert await subject.admission.ahead(behind) == [None] * len(places)
    assert await subject.admission.ahead([]) == []
