"""What a worker answers itself while the ledger is away."""

from dataclasses import replace
from datetime import timedelta

from ratelimit import Duplicate, Leased, Run
from streams.unledgered import REMEMBERED, Unledgered
from tests.deliveries import delivery

SECOND = timedelta(seconds=1)
FIRST = delivery()


def test_a_job_that_ran_here_does_not_run_again_unless_it_is_retried() -> None:
    ledger = Unledgered()
    assert ledger.admit([FIRST], [], SECOND) == [Run("", 0)]
    ledger.ran(FIRST)
    assert ledger.admit([replace(FIRST)], [], SECOND) == [Duplicate()]
    retry = replace(FIRST, attempt=FIRST.attempt + 1)
    assert ledger.admit([retry, FIRST], [], SECOND) == [Run("", 0), Leased(SECOND)]
    ledger.ran(retry)
    assert ledger.admit([FIRST, retry], [], SECOND) == [Duplicate(), Duplicate()]


def test_a_job_that_ended_with_a_lease_does_not_run_again_either_nor_is_the_ledger_contradicted() -> None:
    ledger = Unledgered()
    ledger.ended(FIRST)
    assert ledger.admit([replace(FIRST)], [], SECOND) == [Duplicate()]
    assert ledger.admit([replace(FIRST, attempt=FIRST.attempt + 1)], [], SECOND) == [Run("", 0)]
    assert not ledger.knows(FIRST), "when there is a ledger, its answer counts"


def test_a_copy_of_a_job_that_began_elsewhere_waits_and_one_of_a_job_that_ended_here_is_spent() -> None:
    ledger = Unledgered()
    copy = delivery(headers={"copy": b"1"})
    assert ledger.admit([copy], [], SECOND) == [Leased(SECOND)]
    ledger.ended(copy)
    assert ledger.admit([copy], [], SECOND) == [Duplicate()]


def test_where_nothing_goes_on_without_the_ledger_nothing_is_remembered() -> None:
    ledger = Unledgered(closed=True)
    ledger.ended(FIRST)
    assert ledger._ended == {}


def test_one_that_may_run_and_does_not_may_run_later() -> None:
    ledger = Unledgered()
    for _ in range(2):
        assert ledger.admit([FIRST], [], SECOND) == [Run("", 0)]


def test_one_that_runs_here_is_asked_for_again_even_within_a_batch() -> None:
    ledger = Unledgered()
    assert ledger.admit([FIRST], [FIRST.identity], SECOND) == [Leased(SECOND)]
    assert ledger.admit([FIRST, replace(FIRST)], [], SECOND) == [Run("", 0), Leased(SECOND)]


def test_other_jobs_and_other_organizations_are_not_concerned() -> None:
    ledger = Unledgered()
    ledger.ran(FIRST)
    others = [replace(FIRST, idempotency_key="another"), replace(FIRST, organization_id="another")]
    assert ledger.admit(others, [], SECOND) == [Run("", 0)] * 2


def test_it_remembers_the_latest_only() -> None:
    ledger = Unledgered()
    many = [replace(FIRST, idempotency_key=f"key-{number}") for number in range(REMEMBERED + 1)]
    for one in many:
        ledger.ran(one)
    assert ledger.admit([many[0], many[-1]], [], SECOND) == [Run("", 0), Duplicate()]
