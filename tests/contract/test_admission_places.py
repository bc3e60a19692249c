"""What admission promises of concurrency limits and gates, over the model and over Redis."""

from datetime import timedelta

import pytest

from ratelimit import (
    Candidate,
    Concurrency,
    Done,
    Duplicate,
    Gate,
    Leased,
    Limit,
    Limited,
    Limits,
    Released,
    Run,
    Waiting,
)
from ratelimit.redis import BATCH_MAX
from tests.admission import FIRST, HOUR, LEASE, MICROSECOND, SECOND, Subject

TWO = Concurrency("running emails", 2)
ONE = Concurrency("running acme", 1)
STRIPE = Gate("stripe")
ENDS: list[Done | Waiting | Released] = [Done(), Waiting(SECOND), Released()]


async def test_no_more_run_at_a_time_than_there_are_places(subject: Subject) -> None:
    batch = [Candidate(f"acme:{n}", FIRST, (TWO,)) for n in range(4)]
    answers = await subject.admission.admit(batch)
    assert [type(answer) for answer in answers] == [Run, Run, Limited, Limited]
    assert answers[2] == Limited(LEASE, "running emails")
    assert await subject.ask("globex:1", FIRST, TWO) == Limited(LEASE, "running emails")
    assert isinstance(await subject.ask("globex:1"), Run), "what is refused is not leased"


@pytest.mark.parametrize("end", ENDS)
async def test_a_place_is_free_once_its_job_is_settled(
    subject: Subject, end: Done | Waiting | Released
) -> None:
    run = await subject.run("acme:1", FIRST, ONE)
    assert isinstance(await subject.ask("acme:2", FIRST, ONE), Limited)
    assert await subject.settle("acme:1", run, end, ONE)
    again = await subject.run("acme:2", FIRST, ONE)
    assert await subject.settle("acme:1", run, end, ONE), "a repeated mark"
    assert isinstance(await subject.ask("acme:3", FIRST, ONE), Limited)
    assert await subject.settle("acme:2", again, end, ONE)


async def test_a_place_is_free_once_its_lease_has_run_out(subject: Subject) -> None:
    await subject.run("acme:1", FIRST, ONE)
    subject.clock.advance(LEASE - MICROSECOND)
    assert await subject.ask("acme:2", FIRST, ONE) == Limited(MICROSECOND, "running acme")
    subject.clock.advance(MICROSECOND)
    await subject.run("acme:2", FIRST, ONE)


async def test_a_renewed_lease_keeps_its_places(subject: Subject) -> None:
    first = await subject.run("acme:1", FIRST, TWO)
    subject.clock.advance(LEASE / 2)
    await subject.run("acme:2", FIRST, TWO)
    assert await subject.renew("acme:1", first, TWO)
    assert await subject.ask("acme:3", FIRST, TWO) == Limited(LEASE, "running emails")
    subject.clock.advance(LEASE - MICROSECOND)
    assert await subject.ask("acme:3", FIRST, TWO) == Limited(MICROSECOND, "running emails")
    subject.clock.advance(MICROSECOND)
    await subject.run("acme:3", FIRST, TWO)


async def test_who_lost_its_lease_gives_no_place_back(subject: Subject) -> None:
    zombie = await subject.run("acme:1", FIRST, ONE)
    subject.clock.advance(LEASE)
    heir = await subject.run("acme:1", FIRST, ONE)
    assert not await subject.settle("acme:1", zombie, Done(), ONE)
    assert not await subject.renew("acme:1", zombie, ONE)
    assert await subject.ask("acme:2", FIRST, ONE) == Limited(LEASE, "running acme")
    assert await subject.settle("acme:1", heir, Done(), ONE)
    await subject.run("acme:2", FIRST, ONE)


async def test_a_refused_job_spends_nothing_anywhere(subject: Subject) -> None:
    rate = Limit("queue:emails", 1, HOUR)
    busy = await subject.run("acme:1", FIRST, ONE)
    for _ in range(3):
        assert await subject.ask("acme:2", FIRST, rate, TWO, ONE) == Limited(LEASE, "running acme")
    await subject.settle("acme:1", busy, Done(), ONE)
    await subject.run("globex:1", FIRST, TWO)
    await subject.run("acme:2", FIRST, rate, TWO, ONE)
    # And the other way round: a rate that refuses takes no place.
    full = await subject.ask("globex:2", FIRST, rate, Concurrency("running globex", 1))
    assert full == Limited(HOUR, "queue:emails")
    await subject.run("globex:3", FIRST, Concurrency("running globex", 1))


async def test_duplicates_and_leased_jobs_take_no_place(subject: Subject) -> None:
    await subject.settle("acme:done", await subject.run("acme:done"), Done())
    await subject.run("acme:leased")
    for _ in range(3):
        assert await subject.ask("acme:done", FIRST, ONE) == Duplicate()
        assert await subject.ask("acme:leased", FIRST, ONE) == Leased(LEASE)
    await subject.run("acme:1", FIRST, ONE)


async def test_waits_that_are_sure_are_named_before_places(subject: Subject) -> None:
    rate = Limit("queue:emails", 1, timedelta(seconds=1))
    await subject.run("acme:1", FIRST, ONE, rate)
    assert await subject.ask("acme:2", FIRST, ONE, rate) == Limited(timedelta(seconds=1), "queue:emails")
    subject.clock.advance(timedelta(seconds=1))
    answer = await subject.ask("acme:2", FIRST, ONE, rate)
    assert answer == Limited(LEASE - timedelta(seconds=1), "running acme")


async def test_fewer_places_let_nobody_in_until_enough_are_free(subject: Subject) -> None:
    many = Concurrency("running emails", 3)
    runs = []
    for number in range(3):
        runs.append(await subject.run(f"acme:{number}", FIRST, many))
        subject.clock.advance(timedelta(seconds=1))
    fewer = Concurrency("running emails", 1)
    assert await subject.ask("acme:9", FIRST, fewer) == Limited(
        LEASE - timedelta(seconds=1), "running emails"
    )
    for number in (2, 0):
        await subject.settle(f"acme:{number}", runs[number], Done(), many)
        assert isinstance(await subject.ask("acme:9", FIRST, fewer), Limited)
    await subject.run("acme:8", FIRST, many)
    await subject.settle("acme:1", runs[1], Done(), many)
    assert isinstance(await subject.ask("acme:9", FIRST, fewer), Limited)
    await subject.run("acme:9", FIRST, many)


async def test_places_are_written_again_to_a_ledger_that_was_flushed(subject: Subject) -> None:
    run = await subject.run("acme:1", FIRST, ONE)
    await subject.flush()
    assert await subject.renew("acme:1", run, ONE)
    assert isinstance(await subject.ask("acme:2", FIRST, ONE), Limited)
    assert await subject.settle("acme:1", run, Done(), ONE)
    await subject.run("acme:2", FIRST, ONE)


async def test_a_job_costs_one_place_whatever_else_it_costs(subject: Subject) -> None:
    rate = Limit("queue:emails", 10, HOUR)
    assert isinstance(await subject.ask("acme:1", FIRST, rate, TWO, cost=5), Run)
    assert isinstance(await subject.ask("acme:2", FIRST, rate, TWO, cost=5), Run)


async def test_many_jobs_and_limits_fit_into_one_call(subject: Subject) -> None:
    names = [f"acme:{n}" for n in range(BATCH_MAX)]
    held: dict[str, Limits] = {
        name: (
            *(Limit(f"{name}/{kind}", 1, HOUR) for kind in range(7)),
            Concurrency(f"{name}/at once", 1),
            TWO,
        )
        for name in names
    }
    answers = await subject.admission.admit([Candidate(name, FIRST, held[name]) for name in names])
    assert [type(answer) for answer in answers] == [Run] * 2 + [Limited] * (BATCH_MAX - 2)
    again = await subject.ask("globex:1", FIRST, held["acme:9"][-2], held["acme:0"][0])
    assert again == Limited(HOUR, "acme:0/0")


async def test_a_shut_gate_lets_nobody_in_until_then(subject: Subject) -> None:
    rate = Limit("queue:emails", 1, HOUR)
    await subject.run("acme:0", FIRST, STRIPE)
    await subject.admission.push("stripe", HOUR)
    subject.clock.advance(HOUR / 2)
    assert await subject.ask("acme:1", FIRST, ONE, rate, STRIPE) == Limited(HOUR / 2, "stripe")
    await subject.run("globex:1", FIRST, ONE)
    subject.clock.advance(HOUR / 2 - MICROSECOND)
    assert await subject.ask("acme:2", FIRST, STRIPE) == Limited(MICROSECOND, "stripe")
    subject.clock.advance(MICROSECOND)
    await subject.run("acme:1", FIRST, rate, STRIPE)


async def test_a_shorter_push_opens_nothing_and_lifting_does(subject: Subject) -> None:
    await subject.admission.push("stripe", HOUR)
    await subject.admission.push("stripe", timedelta(seconds=1))
    assert await subject.ask("acme:1", FIRST, STRIPE) == Limited(HOUR, "stripe")
    await subject.admission.push("stripe", 2 * HOUR)
    assert await subject.ask("acme:1", FIRST, STRIPE) == Limited(2 * HOUR, "stripe")
    await subject.admission.lift("stripe")
    await subject.run("acme:1", FIRST, STRIPE)


async def test_a_batch_that_contradicts_itself_is_refused_before_anything_is_taken(subject: Subject) -> None:
    batch = [Candidate("acme:1", FIRST, (TWO,)), Candidate("acme:2", FIRST, (Concurrency(TWO.name, 5),))]
    with pytest.raises(ValueError, match="one batch has two of limit 'running emails'"):
        await subject.admission.admit(batch)
    await subject.run("acme:1")
