"""What operators are shown of the ledger and of limits, over the model and over Redis."""

from datetime import timedelta
from typing import cast

import pytest

from ratelimit import Concurrency, Done, Gate, Known, Left, Limit, Released, Views, Waiting
from tests.admission import FIRST, LEASE, SECOND, Subject

SECONDS = timedelta(seconds=1)
RATE = Limit("rate", 2, 2 * SECONDS)
PLACES = Concurrency("places", 2)
GATE = Gate("gate")


@pytest.fixture
def views(subject: Subject) -> Views:
    return cast(Views, subject.admission)


async def test_the_ledger_shows_what_it_knows_of_a_job(subject: Subject, views: Views) -> None:
    assert await views.known("acme:job") is None
    run = await subject.run("acme:job", FIRST)
    assert await views.known("acme:job") == Known("leased", FIRST, 0, subject.clock.now + LEASE)
    await subject.settle("acme:job", run, Waiting(SECOND))
    assert await views.known("acme:job") == Known("waiting", SECOND)
    run = await subject.run("acme:job", SECOND)
    await subject.settle("acme:job", run, Done())
    assert await views.known("acme:job") == Known("done")


async def test_a_lease_that_ran_out_and_crashes_are_shown(subject: Subject, views: Views) -> None:
    await subject.run("acme:job", FIRST)
    ended = subject.clock.now + LEASE
    subject.clock.advance(LEASE + SECONDS)
    assert await views.known("acme:job") == Known("leased", FIRST, 0, ended)
    run = await subject.run("acme:job", FIRST)
    assert await views.known("acme:job") == Known("leased", FIRST, 1, subject.clock.now + LEASE)
    await subject.settle("acme:job", run, Released())
    assert await views.known("acme:job") == Known("waiting", FIRST, 1)


async def test_what_is_left_of_a_rate_and_when_the_next_fits(subject: Subject, views: Views) -> None:
    assert await views.left((RATE,)) == [Left(RATE, 2)]
    await subject.run("a", FIRST, RATE)
    assert await views.left((RATE,)) == [Left(RATE, 1)]
    await subject.run("b", FIRST, RATE)
    assert await views.left((RATE,)) == [Left(RATE, 0, subject.clock.now + SECONDS)]
    subject.clock.advance(SECONDS)
    assert await views.left((RATE,)) == [Left(RATE, 1)]


async def test_what_is_left_of_places_until_leases_run_out(subject: Subject, views: Views) -> None:
    first = await subject.run("a", FIRST, PLACES)
    ends = subject.clock.now + LEASE
    subject.clock.advance(SECONDS)
    await subject.run("b", FIRST, PLACES)
    assert await views.left((PLACES,)) == [Left(PLACES, 0, ends)]
    await subject.settle("a", first, Done(), PLACES)
    assert await views.left((PLACES,)) == [Left(PLACES, 1)]
    subject.clock.advance(LEASE + SECONDS)
    assert await views.left((PLACES,)) == [Left(PLACES, 2)], "who crashed holds no place"


async def test_a_gate_is_open_or_shut_and_looking_takes_nothing(subject: Subject, views: Views) -> None:
    limits = (GATE, PLACES, RATE)
    for _ in range(3):
        assert await views.left(limits) == [Left(GATE, 1), Left(PLACES, 2), Left(RATE, 2)]
    await subject.admission.push("gate", 5 * SECONDS)
    assert (await views.left(limits))[0] == Left(GATE, 0, subject.clock.now + 5 * SECONDS)
    subject.clock.advance(5 * SECONDS)
    assert (await views.left(limits))[0] == Left(GATE, 1)


async def test_workers_that_live_are_shown_and_asking_is_no_sign_of_life(
    subject: Subject, views: Views
) -> None:
    assert await views.living() == []
    await subject.admission.present("primary/b", 5 * SECONDS)
    await subject.admission.present("primary/a", 9 * SECONDS)
    assert sorted(await views.living()) == ["primary/a", "primary/b"]
    subject.clock.advance(5 * SECONDS)
    assert await views.living() == ["primary/a"]
    await subject.admission.present("primary/a", timedelta(0))
    assert await views.living() == []
