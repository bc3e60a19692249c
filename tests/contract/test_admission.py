"""What admission promises, over the model and over Redis."""

from datetime import timedelta

import pytest

from ratelimit import (
    Candidate,
    Done,
    Duplicate,
    Lease,
    Leased,
    Limit,
    Limited,
    Mark,
    Released,
    Run,
    Waiting,
    fence,
)
from ratelimit.redis import BATCH_MAX
from tests.admission import FIRST, HOUR, LEASE, MICROSECOND, SECOND, THIRD, Subject


async def test_a_job_runs_once_at_a_time(subject: Subject) -> None:
    run = await subject.run("acme:1")
    assert run.crashes == 0
    assert await subject.ask("acme:1") == Leased(LEASE)
    assert await subject.ask("globex:1") != Leased(LEASE)


async def test_a_done_job_never_runs_again(subject: Subject) -> None:
    run = await subject.run("acme:1")
    assert await subject.admission.completed(["acme:1", "acme:2"]) == [False, False]
    assert await subject.settle("acme:1", run, Done())
    assert await subject.admission.completed(["acme:1", "acme:2"]) == [True, False]
    subject.clock.advance(timedelta(days=6))
    assert [await subject.ask("acme:1", later) for later in (FIRST, SECOND, "~")] == [Duplicate()] * 3


async def test_a_waiting_job_runs_from_its_next_fence_on(subject: Subject) -> None:
    assert await subject.settle("acme:1", await subject.run("acme:1"), Waiting(SECOND))
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    assert await subject.settle("acme:1", await subject.run("acme:1", SECOND), Waiting(SECOND))
    await subject.run("acme:1", THIRD)


async def test_a_dead_job_runs_only_when_replayed(subject: Subject) -> None:
    assert await subject.settle("acme:1", await subject.run("acme:1", SECOND), Waiting(SECOND + "~"))
    assert await subject.ask("acme:1", SECOND) == Duplicate()
    await subject.run("acme:1", fence("0190a6d2-7c1a-7000-8000-000000000000", 1, 0))


async def test_a_stale_copy_is_a_duplicate_while_the_job_is_leased(subject: Subject) -> None:
    await subject.run("acme:1", SECOND)
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    assert await subject.ask("acme:1", THIRD) == Leased(LEASE)
    subject.clock.advance(LEASE)
    assert await subject.ask("acme:1", FIRST) == Duplicate()


@pytest.mark.parametrize(("lower", "higher"), [("A", "a"), ("1", "~"), ("", "0"), ("z", "é"), ("a", "a:")])
async def test_fences_are_compared_by_byte(subject: Subject, lower: str, higher: str) -> None:
    await subject.settle("acme:1", await subject.run("acme:1", higher), Waiting(higher))
    assert await subject.ask("acme:1", lower) == Duplicate()
    await subject.run("acme:1", higher)


async def test_a_lease_that_ran_out_is_taken_over_and_counted(subject: Subject) -> None:
    await subject.run("acme:1")
    subject.clock.advance(LEASE - MICROSECOND)
    assert await subject.ask("acme:1") == Leased(MICROSECOND)
    subject.clock.advance(MICROSECOND)
    assert (await subject.run("acme:1")).crashes == 1
    subject.clock.advance(LEASE)
    again = await subject.run("acme:1", SECOND)
    assert again.crashes == 2
    await subject.settle("acme:1", again, Waiting(THIRD))
    assert (await subject.run("acme:1", THIRD)).crashes == 0


async def test_a_zombie_changes_nothing(subject: Subject) -> None:
    zombie = await subject.run("acme:1")
    subject.clock.advance(LEASE)
    heir = await subject.run("acme:1")
    for end in (Done(), Waiting(THIRD), Released()):
        assert not await subject.settle("acme:1", zombie, end)
    assert not await subject.renew("acme:1", zombie)
    assert await subject.ask("acme:1") == Leased(LEASE)
    assert await subject.admission.completed(["acme:1"]) == [False]
    assert await subject.settle("acme:1", heir, Done())
    assert not await subject.settle("acme:1", zombie, Waiting(THIRD))
    assert await subject.ask("acme:1", THIRD) == Duplicate()


async def test_a_lease_that_nobody_took_over_still_settles(subject: Subject) -> None:
    run = await subject.run("acme:1")
    subject.clock.advance(3 * LEASE)
    assert await subject.settle("acme:1", run, Done())
    assert await subject.ask("acme:1") == Duplicate()


async def test_a_lease_is_renewed_even_after_it_ran_out(subject: Subject) -> None:
    run = await subject.run("acme:1", SECOND)
    for _ in range(3):
        subject.clock.advance(LEASE)
        assert await subject.renew("acme:1", run)
    assert await subject.ask("acme:1", SECOND) == Leased(LEASE)
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    subject.clock.advance(LEASE)
    assert (await subject.run("acme:1", SECOND)).crashes == 1


@pytest.mark.parametrize("end", [Done(), Waiting(SECOND), Released()])
async def test_a_settled_lease_is_not_renewed(subject: Subject, end: Done | Waiting | Released) -> None:
    run = await subject.run("acme:1")
    await subject.settle("acme:1", run, end)
    assert not await subject.renew("acme:1", run)


async def test_a_released_job_runs_again_and_keeps_its_crashes(subject: Subject) -> None:
    await subject.run("acme:1", SECOND)
    subject.clock.advance(LEASE)
    assert await subject.settle("acme:1", await subject.run("acme:1", SECOND), Released())
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    assert (await subject.run("acme:1", SECOND)).crashes == 1


async def test_what_a_released_job_took_of_its_limits_stays_taken(subject: Subject) -> None:
    limit = Limit("queue:emails", 1, HOUR)
    await subject.settle("acme:1", await subject.run("acme:1", FIRST, limit), Released())
    assert await subject.ask("acme:1", FIRST, limit) == Limited(HOUR, "queue:emails")


async def test_marks_are_written_to_a_ledger_that_was_flushed(subject: Subject) -> None:
    runs = {job: await subject.run(job, SECOND) for job in ("acme:done", "acme:waiting", "acme:released")}
    await subject.flush()
    assert await subject.settle("acme:done", runs["acme:done"], Done())
    assert await subject.settle("acme:waiting", runs["acme:waiting"], Waiting(THIRD))
    assert await subject.settle("acme:released", runs["acme:released"], Released())
    assert await subject.ask("acme:done", THIRD) == Duplicate()
    assert await subject.ask("acme:waiting", SECOND) == Duplicate()
    await subject.run("acme:waiting", THIRD)
    await subject.run("acme:released", SECOND)


async def test_a_flushed_ledger_keeps_the_lease_of_whoever_asks_first(subject: Subject) -> None:
    renewing, late = await subject.run("acme:1"), await subject.run("acme:2")
    await subject.flush()
    assert await subject.renew("acme:1", renewing)
    assert await subject.ask("acme:1") == Leased(LEASE)
    assert await subject.settle("acme:1", renewing, Waiting(SECOND))
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    await subject.run("acme:2")
    assert not await subject.renew("acme:2", late)
    assert not await subject.settle("acme:2", late, Done())


@pytest.mark.parametrize("end", [Done(), Waiting(SECOND), Released()])
async def test_a_repeated_mark_is_true_and_changes_nothing(
    subject: Subject, end: Done | Waiting | Released
) -> None:
    run = await subject.run("acme:1")
    assert await subject.admission.settle([Mark("acme:1", run.token, end)] * 2) == [True, True]
    assert await subject.settle("acme:1", run, end)
    assert await subject.admission.completed(["acme:1"]) == [end == Done()]


async def test_a_mark_does_not_replace_another_one_under_its_token(subject: Subject) -> None:
    run = await subject.run("acme:1")
    marks = [Mark("acme:1", run.token, Waiting(SECOND)), Mark("acme:1", run.token, Done())]
    assert await subject.admission.settle(marks) == [True, False]
    assert not await subject.settle("acme:1", run, Done())
    assert not await subject.settle("acme:1", run, Waiting(THIRD))
    await subject.run("acme:1", SECOND)


async def test_a_mark_without_a_lease_counts_only_where_nobody_holds_the_job(subject: Subject) -> None:
    unleased = Run("", 0)
    await subject.run("acme:held", FIRST)
    assert not await subject.settle("acme:held", unleased, Done())
    assert await subject.settle("acme:1", unleased, Waiting(SECOND))
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    assert await subject.settle("acme:1", await subject.run("acme:1", SECOND), Done())
    assert await subject.settle("acme:2", unleased, Done())
    assert await subject.ask("acme:2", SECOND) == Duplicate()


async def test_a_fence_never_goes_back(subject: Subject) -> None:
    await subject.settle("acme:1", await subject.run("acme:1", SECOND), Waiting(FIRST))
    assert await subject.ask("acme:1", FIRST) == Duplicate()
    await subject.run("acme:1", SECOND)


async def test_the_first_of_two_in_one_batch_runs(subject: Subject) -> None:
    batch = [Candidate("acme:1", at) for at in (SECOND, SECOND, FIRST, THIRD)]
    first, *others = await subject.admission.admit(batch)
    assert isinstance(first, Run)
    assert others == [Leased(LEASE), Duplicate(), Leased(LEASE)]


async def test_a_burst_runs_at_once_and_then_one_each_interval(subject: Subject) -> None:
    limit = Limit("queue:emails", 60, timedelta(minutes=1), burst=3)
    answers = await subject.admission.admit([Candidate(f"acme:{n}", FIRST, (limit,)) for n in range(5)])
    second = timedelta(seconds=1)
    assert [type(answer) for answer in answers[:3]] == [Run] * 3
    assert answers[3:] == [Limited(second, "queue:emails")] * 2
    subject.clock.advance(second - MICROSECOND)
    assert await subject.ask("acme:3", FIRST, limit) == Limited(MICROSECOND, "queue:emails")
    subject.clock.advance(MICROSECOND)
    await subject.run("acme:3", FIRST, limit)
    assert await subject.ask("acme:4", FIRST, limit) == Limited(second, "queue:emails")


async def test_an_unused_limit_saves_no_more_than_its_burst(subject: Subject) -> None:
    limit = Limit("queue:emails", 10, HOUR, burst=2)
    await subject.run("acme:0", FIRST, limit)
    subject.clock.advance(timedelta(days=3))
    answers = await subject.admission.admit([Candidate(f"acme:{n}", FIRST, (limit,)) for n in range(1, 4)])
    assert [type(answer) for answer in answers] == [Run, Run, Limited]


async def test_limits_are_taken_all_or_none(subject: Subject) -> None:
    wide, tight = Limit("queue:integrations", 3, HOUR), Limit("organization:acme", 1, 2 * HOUR)
    await subject.run("acme:1", FIRST, wide, tight)
    for _ in range(5):
        assert await subject.ask("acme:2", FIRST, wide, tight) == Limited(2 * HOUR, "organization:acme")
    await subject.run("globex:1", FIRST, wide)
    await subject.run("globex:2", FIRST, wide)
    assert await subject.ask("globex:3", FIRST, wide) == Limited(HOUR / 3, "queue:integrations")


async def test_the_limit_that_frees_last_is_named(subject: Subject) -> None:
    short, long = Limit("short", 1, timedelta(minutes=1)), Limit("long", 1, HOUR)
    await subject.run("acme:1", FIRST, long, short)
    assert await subject.ask("acme:2", FIRST, short, long) == Limited(HOUR, "long")
    subject.clock.advance(HOUR)
    await subject.run("acme:3", FIRST, short)
    assert await subject.ask("acme:2", FIRST, long, short) == Limited(timedelta(minutes=1), "short")


async def test_a_job_takes_its_cost(subject: Subject) -> None:
    limit = Limit("provider:ocr", 6, HOUR)
    assert isinstance(await subject.ask("acme:1", FIRST, limit, cost=4), Run)
    assert await subject.ask("acme:2", FIRST, limit, cost=4) == Limited(HOUR / 3, "provider:ocr")
    assert isinstance(await subject.ask("acme:3", FIRST, limit, cost=2), Run)
    assert await subject.ask("acme:2", FIRST, limit, cost=4) == Limited(HOUR * 2 / 3, "provider:ocr")


@pytest.mark.parametrize(
    ("limits", "cost", "sentence"),
    [
        ((Limit("small", 5, HOUR, burst=2),), 3, "costs 3 but limit 'small' never allows over 2 at once"),
        ((Limit("small", 5, HOUR),), 0, "costs 0; the least is 1"),
        ((Limit("same", 5, HOUR), Limit("same", 6, HOUR)), 1, "names one limit twice: same, same"),
    ],
)
async def test_what_can_never_fit_is_refused_before_anything_is_taken(
    subject: Subject, limits: tuple[Limit, ...], cost: int, sentence: str
) -> None:
    batch = [Candidate(f"acme:{n}", FIRST) for n in range(BATCH_MAX + 1)]
    with pytest.raises(ValueError, match=sentence):
        await subject.admission.admit([*batch, Candidate("acme:never", FIRST, limits, cost)])
    await subject.run("acme:0")


async def test_a_refused_job_is_not_leased_and_a_duplicate_takes_nothing(subject: Subject) -> None:
    limit = Limit("queue:emails", 2, HOUR)
    await subject.settle("acme:done", await subject.run("acme:done"), Done())
    await subject.run("acme:leased")
    await subject.run("acme:1", FIRST, limit)
    for _ in range(3):
        assert await subject.ask("acme:done", FIRST, limit) == Duplicate()
        assert await subject.ask("acme:leased", FIRST, limit) == Leased(LEASE)
    await subject.run("acme:2", FIRST, limit)
    assert isinstance(await subject.ask("acme:3", FIRST, limit), Limited)
    await subject.run("acme:3", FIRST)


async def test_a_limit_that_is_raised_frees_at_once(subject: Subject) -> None:
    slow, quick = Limit("queue:emails", 1, 100 * HOUR, burst=2), Limit("queue:emails", 60, HOUR, burst=2)
    await subject.run("acme:1", FIRST, slow)
    await subject.run("acme:2", FIRST, slow)
    assert await subject.ask("acme:3", FIRST, quick) == Limited(timedelta(minutes=1), "queue:emails")
    subject.clock.advance(timedelta(minutes=1) - MICROSECOND)
    assert await subject.ask("acme:3", FIRST, quick) == Limited(MICROSECOND, "queue:emails")
    subject.clock.advance(MICROSECOND)
    await subject.run("acme:3", FIRST, quick)


async def test_a_clock_that_goes_back_delays_by_no_more_than_the_burst(subject: Subject) -> None:
    limit = Limit("queue:emails", 2, HOUR)
    await subject.run("acme:1", FIRST, limit)
    subject.clock.advance(timedelta(days=-2))
    assert await subject.ask("acme:2", FIRST, limit) == Limited(HOUR / 2, "queue:emails")
    subject.clock.advance(HOUR / 2)
    await subject.run("acme:2", FIRST, limit)


async def test_a_batch_longer_than_a_round_trip_is_answered_in_order(subject: Subject) -> None:
    limit = Limit("queue:emails", BATCH_MAX + 5, HOUR)
    batch = [Candidate(f"acme:{n}", FIRST, (limit,)) for n in range(BATCH_MAX + 10)]
    answers = await subject.admission.admit(batch)
    assert [type(answer) for answer in answers] == [Run] * (BATCH_MAX + 5) + [Limited] * 5
    tokens = [answer.token for answer in answers if isinstance(answer, Run)]
    marks = [Mark(job.identity, token, Done()) for job, token in zip(batch, tokens, strict=False)]
    jobs = [candidate.identity for candidate in batch]
    fits, left = len(marks), len(batch) - len(marks)
    assert await subject.admission.settle([*marks, Mark("acme:0", "nobody", Done())]) == [True] * fits + [
        False
    ]
    assert await subject.admission.completed(jobs) == [True] * fits + [False] * left
    assert await subject.admission.renew([Lease(job, "nobody") for job in jobs[:fits]]) == [False] * fits


async def test_an_empty_batch_has_no_answers(subject: Subject) -> None:
    assert await subject.admission.admit([]) == []
    assert await subject.admission.settle([]) == []
    assert await subject.admission.renew([]) == []
    assert await subject.admission.completed([]) == []


@pytest.mark.parametrize("odd", ["acme: a  b\n", "acme:\x00\r\n$5", "акме:ключ", "acme:" + "k" * 5_000])
async def test_identities_fences_and_limits_are_any_text(subject: Subject, odd: str) -> None:
    limit = Limit(odd, 1, HOUR)
    run = await subject.run(odd, odd, limit)
    assert await subject.ask(odd, odd + "\n") == Leased(LEASE)
    assert await subject.ask(odd + "2", odd, limit) == Limited(HOUR, odd)
    assert await subject.settle(odd, run, Waiting(odd + " 1"))
    assert await subject.ask(odd, odd) == Duplicate()
    await subject.run(odd, odd + " 1")
