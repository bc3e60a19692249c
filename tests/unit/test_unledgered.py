"""What a worker answers itself while the ledger is away."""

from dataclasses import replace
from datetime import timedelta

from ratelimit import Candidate, Duplicate, Leased, Limited, Run
from streams.delivery import Delivery
from streams.unledgered import REMEMBERED, Unledgered
from tests.deliveries import delivery


def candidates(*deliveries: Delivery) -> list[Candidate]:
    return [Candidate(one.identity, one.fence()) for one in deliveries]


SECOND = timedelta(seconds=1)
FIRST = delivery()


def test_a_job_that_ran_here_does_not_run_again_unless_it_is_retried() -> None:
    ledger = Unledgered()
    assert ledger.admit(candidates(FIRST), [], SECOND) == [Run("", 0)]
    assert ledger.admit(candidates(replace(FIRST)), [], SECOND) == [Duplicate()]
    retry = replace(FIRST, attempt=FIRST.attempt + 1)
    assert ledger.admit(candidates(retry, FIRST), [], SECOND) == [Run("", 0), Leased(SECOND)]
    assert ledger.admit(candidates(FIRST, retry), [], SECOND) == [Duplicate(), Duplicate()]


def test_one_that_runs_here_is_asked_for_again_even_within_a_batch() -> None:
    ledger = Unledgered()
    assert ledger.admit(candidates(FIRST), [FIRST.identity], SECOND) == [Leased(SECOND)]
    assert ledger.admit(candidates(FIRST, replace(FIRST)), [], SECOND) == [Run("", 0), Leased(SECOND)]


def test_other_jobs_and_other_organizations_are_not_concerned() -> None:
    ledger = Unledgered()
    others = [replace(FIRST, idempotency_key="another"), replace(FIRST, organization_id="another")]
    assert ledger.admit(candidates(FIRST, *others), [], SECOND) == [Run("", 0)] * 3


def test_it_remembers_the_latest_only() -> None:
    ledger = Unledgered()
    many = [replace(FIRST, idempotency_key=f"key-{number}") for number in range(REMEMBERED + 1)]
    ledger.admit(candidates(*many), [], SECOND)
    assert ledger.admit(candidates(many[0], many[-1]), [], SECOND) == [Run("", 0), Duplicate()]


def test_what_a_limit_refuses_may_run_later() -> None:
    ledger = Unledgered()
    refusal = Limited(SECOND, "rate:queue=emails")
    other = replace(FIRST, idempotency_key="another")
    answers = ledger.admit(
        candidates(FIRST, other), [], SECOND, lambda one: refusal if one.identity == FIRST.identity else None
    )
    assert answers == [refusal, Run("", 0)]
    assert ledger.admit(candidates(FIRST), [], SECOND, lambda one: None) == [Run("", 0)]
