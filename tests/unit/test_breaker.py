"""When a type or its provider is in outage: who waits, who tries, and who is left alone."""

import pickle
import random
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from providers.errors import RateLimited, Refused, Unavailable
from providers.http import status_error
from streams.breaker import HOST_STREAK, HOSTS, PROBE_GRACE, TYPE_STREAK, Breakers
from streams.delivery import Delivery
from streams.errors import Poison, Transient
from streams.execution import failed, judge
from streams.jobs import Payload
from streams.outcome import DeadLetter, Outcome, Retry, Snoozed
from streams.queues import RETRY_DELAYS
from tests.conftest import ExpectedErrors
from tests.deliveries import NOON, delivery, handler

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
DOWN = Unavailable("no answer", host="smtp.example")


class Hook(Payload):
    """A payload that names its host."""

    url: str


def to(host: str, organization: str = "acme", number: int = 0) -> Delivery:
    return delivery(organization, number, handler=HANDLER, payload=Hook(url=f"https://{host}/hook"))


HANDLER = handler(lambda job: None, timeout=20 * SECOND)


def one(number: int = 0, organization: str = "acme", **changes: Any) -> Delivery:
    return delivery(organization, number, handler=HANDLER, **changes)


class Outages:
    """Breakers and a clock that a test moves."""

    def __init__(self) -> None:
        self.breakers = Breakers()
        self.now = NOON

    def fail(self, job: Delivery, error: Exception = DOWN, jitter: float = 0.0) -> Outcome:
        outcome = judge(job, failed(error), 0.0)
        return self.breakers.failed(job, outcome, error, self.now, jitter)

    def succeed(self, job: Delivery, started_at: datetime | None = None) -> None:
        if job.handler.job_type in self.breakers.failing:
            self.breakers.succeeded(job, started_at or self.now, self.now)

    def runs(self, job: Delivery) -> bool:
        if self.breakers.aside(job, self.now, 0.0) is not None:
            return False
        self.breakers.let_run(job, self.now)
        return True

    def trip(self, organizations: tuple[str, ...] = ("acme", "globex")) -> None:
        for number in range(HOST_STREAK):
            self.fail(one(number, organizations[number % len(organizations)]))
        assert self.breakers.open == {"test.job"}


class TestOpening:
    def test_five_failures_in_a_row_for_want_of_a_host_are_an_outage(self) -> None:
        outages = Outages()
        for number in range(HOST_STREAK - 1):
            assert isinstance(outages.fail(one(number)), Retry)
        snoozed = outages.fail(one(9))
        assert isinstance(snoozed, Snoozed)
        assert snoozed.reason == "outage of smtp.example until 2026-03-01T12:00:05Z"
        assert not outages.runs(one(10))

    def test_a_last_attempt_in_an_outage_is_not_the_last(self) -> None:
        outages = Outages()
        outages.trip()
        assert isinstance(outages.fail(one(9, attempt=3)), Snoozed)
        assert isinstance(outages.fail(one(9, attempt=3), Poison("never")), DeadLetter)

    @pytest.mark.parametrize("error", [Transient("x"), KeyError("a bug"), Unavailable("no host is named")])
    def test_twenty_jobs_in_a_row_are_one_whatever_the_reason(
        self, error: Exception, expected_errors: ExpectedErrors
    ) -> None:
        expected_errors.add("KeyError")
        outages = Outages()
        for number in range(TYPE_STREAK - 1):
            for _ in range(3):
                assert isinstance(outages.fail(one(number), error), Retry)
        snoozed = outages.fail(one(99), error)
        assert isinstance(snoozed, Snoozed)
        assert snoozed.reason.startswith("outage of test.job until ")

    @pytest.mark.parametrize("error", [Poison("x"), Refused("x"), RateLimited("x", SECOND)])
    def test_what_an_answer_says_about_a_job_never_counts(self, error: Exception) -> None:
        outages = Outages()
        for number in range(100):
            assert isinstance(outages.fail(one(number), error), DeadLetter | Snoozed)
        assert not outages.breakers.failing

    def test_one_failing_job_among_succeeding_ones_is_left_alone(self) -> None:
        outages = Outages()
        for number in range(1000):
            outages.succeed(one(number))
            assert isinstance(outages.fail(one(5, attempt=number % 2 + 1)), Retry)
        assert isinstance(outages.fail(one(5, attempt=3)), DeadLetter)
        outages.succeed(one(1))
        assert not outages.breakers.failing, "nothing is remembered of it"

    def test_a_transient_keeps_the_delay_it_names(self) -> None:
        outages = Outages()
        outages.trip()
        outcome = outages.fail(one(9), Transient("later", delay=timedelta(hours=1)))
        assert isinstance(outcome, Snoozed)
        assert outcome.delay == timedelta(hours=1)


class TestOrganizations:
    def test_an_outage_that_one_organization_sees_holds_back_only_that_one(self) -> None:
        outages = Outages()
        outages.trip(("acme",))
        assert not outages.runs(one(10, "acme"))
        assert outages.runs(one(10, "globex"))
        outages.fail(one(10, "globex"))
        assert not outages.runs(one(11, "globex"))
        assert not outages.runs(one(11, "initech")), "two saw it, so it is everybody's"

    def test_credentials_that_are_turned_away_blame_no_host(self) -> None:
        refused = status_error("api.example", 401, {}, NOON)
        broken = status_error("api.example", 500, {}, NOON)
        assert isinstance(refused, Unavailable)
        assert refused.host == ""
        assert isinstance(broken, Unavailable)
        assert broken.host == "api.example"
        outages = Outages()
        for number in range(TYPE_STREAK * 2):
            assert isinstance(outages.fail(one(number), refused), Retry)
            if number % (TYPE_STREAK - 1) == 0:
                outages.succeed(one(number, "globex"))
        assert not outages.breakers.open


class TestHostsThatPayloadsName:
    def test_each_has_its_own_breaker(self) -> None:
        outages = Outages()
        for number in range(HOST_STREAK):
            assert outages.runs(to("dead.example", number=number))
            outages.fail(to("dead.example", ("acme", "globex")[number % 2], number))
            outages.succeed(to("live.example", "globex", number))
        for number in range(2 * TYPE_STREAK):
            assert isinstance(outages.fail(to("dead.example", f"org-{number}", number)), Snoozed)
        assert not outages.runs(to("dead.example", number=99))
        assert outages.runs(to("live.example", number=99))

    def test_all_of_them_failing_is_an_outage_of_the_type(self) -> None:
        outages = Outages()
        for number in range(TYPE_STREAK):
            outages.fail(to(f"host-{number}.example", ("acme", "globex")[number % 2], number))
        assert not outages.runs(to("other.example"))
        outages.now += SECOND
        assert outages.runs(to("other.example"))
        outages.succeed(to("other.example"))
        assert not outages.breakers.open

    def test_no_more_than_a_thousand_are_remembered(self) -> None:
        outages = Outages()
        for number in range(HOSTS + 50):
            outages.fail(to(f"host-{number}.example", number=number))
        assert len(outages.breakers.failing["test.job"]) <= HOSTS + 1

    def test_an_address_that_cannot_be_read_names_none(self) -> None:
        outages = Outages()
        outages.fail(to("[::", number=1))
        assert list(outages.breakers.failing["test.job"]) == [""]


class TestProbes:
    def test_cool_downs_last_half_as_long_as_the_outage_has_and_at_most_a_minute(self) -> None:
        outages = Outages()
        outages.trip()
        waits: list[timedelta] = []
        for _ in range(14):
            start = outages.now
            while not outages.runs(one(1)):
                outages.now += SECOND / 10
            age, wait = start - NOON, outages.now - start
            assert abs(wait - min(max(age / 2, SECOND), MINUTE) / (1 if waits else 2)) <= SECOND / 10
            waits.append(wait)
            outages.fail(one(1), jitter=1.0)
        assert waits[-2] < MINUTE == waits[-1]

    def test_one_probe_at_a_time_which_may_ask_again(self) -> None:
        outages = Outages()
        outages.trip()
        outages.now += SECOND
        assert outages.runs(one(1))
        assert outages.runs(one(1))
        assert not outages.runs(one(2))
        outages.breakers.release(one(2))
        assert not outages.runs(one(2))
        outages.breakers.release(one(1))
        assert outages.runs(one(2))

    def test_who_is_not_held_back_does_not_take_the_place_of_the_probe(self) -> None:
        outages = Outages()
        outages.trip(("acme",))
        outages.now += SECOND * 4
        assert outages.runs(one(1, "acme"))
        assert outages.runs(one(2, "globex"))
        outages.fail(one(1, "acme"))
        outages.breakers.release(one(2, "globex"))
        outages.now += SECOND / 2
        assert not outages.runs(one(3, "acme")), "it was the probe, so now the cool-down is longer"

    def test_a_probe_of_which_nothing_is_heard_is_replaced(self) -> None:
        outages = Outages()
        outages.trip()
        outages.now += SECOND
        assert outages.runs(one(1))
        outages.now += HANDLER.timeout + PROBE_GRACE - SECOND
        assert not outages.runs(one(2))
        outages.now += SECOND
        assert outages.runs(one(2))
        assert not outages.runs(one(1))

    @pytest.mark.parametrize("error", [Refused("x"), Poison("x"), RateLimited("x", SECOND), None])
    def test_whatever_answer_a_probe_gets_closes(self, error: Exception | None) -> None:
        outages = Outages()
        outages.trip()
        outages.now += SECOND
        assert outages.runs(one(1))
        if error is None:
            outages.succeed(one(1))
        else:
            outages.fail(one(1), error)
        assert not outages.breakers.open
        assert outages.runs(one(2))

    def test_a_success_that_began_before_the_outage_proves_nothing(self) -> None:
        outages = Outages()
        outages.now += MINUTE
        outages.trip()
        outages.succeed(one(7), NOON)
        assert outages.breakers.open
        outages.succeed(one(7))
        assert not outages.breakers.open

    def test_an_outage_that_comes_back_at_once_goes_on(self) -> None:
        outages = Outages()
        outages.trip()
        outages.now += timedelta(minutes=10)
        assert outages.runs(one(1))
        outages.succeed(one(1))
        outages.trip()
        snoozed = outages.breakers.aside(one(2), outages.now, 0.0)
        assert snoozed is not None
        assert snoozed.delay >= timedelta(minutes=2)
        outages.now += timedelta(minutes=10)
        outages.succeed(one(1))
        outages.now += timedelta(minutes=2)
        outages.trip()
        snoozed = outages.breakers.aside(one(2), outages.now, 0.0)
        assert snoozed is not None
        assert snoozed.delay < timedelta(seconds=6)


def hops(delay: timedelta, late: timedelta) -> int:
    """Return how many retry topics a wait takes when each hop is late by so much."""
    count = 0
    while fitting := [one for one in RETRY_DELAYS.values() if one <= delay]:
        delay -= max(fitting) + late
        count += 1
    return count


class TestSnoozes:
    def test_a_day_of_outage_takes_a_fraction_of_the_snooze_limit(self) -> None:
        for jitter in (0.0, 0.5, 0.999):
            outages = Outages()
            outages.trip()
            end, count, moved = NOON + timedelta(days=1), 0, 0
            while outages.now < end:
                outcome = outages.fail(one(1), jitter=jitter) if outages.runs(one(1)) else None
                snoozed = outcome or outages.breakers.aside(one(1), outages.now, jitter)
                assert isinstance(snoozed, Snoozed)
                assert snoozed.delay >= 5 * SECOND
                count, moved = count + 1, moved + hops(snoozed.delay, SECOND / 10)
                outages.now += snoozed.delay
            assert count < 740
            assert moved < 7 * count

    def test_who_comes_with_the_probe_soon_comes_again_to_see_what_became_of_it(self) -> None:
        outages = Outages()
        outages.trip()
        outages.now += MINUTE
        assert outages.runs(one(1))
        seconds = []
        for _ in range(2):
            snoozed = outages.breakers.aside(one(2), outages.now, 0.999)
            assert snoozed is not None
            seconds.append(snoozed.delay / SECOND)
            outages.now += snoozed.delay
        assert seconds == [5.9, 35.9], "only while the probe is young"

    def test_the_wait_reaches_two_minutes_and_no_further_than_a_quarter_more(self) -> None:
        outages = Outages()
        outages.trip()
        outages.now += timedelta(hours=1)
        assert outages.runs(one(1))
        outages.now += 5 * SECOND
        for jitter, seconds in ((0.0, 120.9), (0.5, 135.9), (0.999, 145.9)):
            snoozed = outages.breakers.aside(one(2), outages.now, jitter)
            assert snoozed is not None
            assert snoozed.delay == timedelta(seconds=seconds)
            assert hops(snoozed.delay, SECOND / 10) <= 6

    def test_a_crowd_comes_back_one_after_the_other(self) -> None:
        outages, chance = Outages(), random.Random(7)
        outages.trip()
        back: Counter[int] = Counter()
        waiting = one(9)
        for _ in range(20_000):
            snoozed = outages.breakers.aside(waiting, outages.now, chance.random())
            assert snoozed is not None
            assert snoozed.delay < timedelta(seconds=151)
            back[int(snoozed.delay.total_seconds())] += 1
        assert len(back) > 20
        assert max(back.values()) < 2_000, "more than 400 a second, in steps of 5 s"


def test_unavailable_keeps_its_host_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DOWN))
    assert (str(error), error.host) == ("no answer", "smtp.example")
