"""Breakers through any order of asking, success, failure and time."""

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from providers.errors import Unavailable
from streams.breaker import LONGEST, Breakers
from streams.delivery import Delivery
from streams.execution import failed, judge
from streams.outcome import Snoozed
from tests.deliveries import NOON
from tests.unit.test_breaker import HANDLER, SECOND, one


class Machine(RuleBasedStateMachine):
    """Any order of asking, success, failure and time, for jobs of three organizations."""

    def __init__(self) -> None:
        super().__init__()
        self.breakers = Breakers()
        self.now = NOON
        self.running: dict[str, tuple[Delivery, datetime, bool]] = {}
        self.counter = 0

    @property
    def open(self) -> bool:
        return bool(self.breakers.open)

    @property
    def probe(self) -> str:
        return "".join(breaker.probe for breaker in self.breakers.failing.get("test.job", {}).values())

    @rule(organization=st.sampled_from("abc"), jitter=st.floats(0, 0.999))
    def ask(self, organization: str, jitter: float) -> None:
        self.counter += 1
        job, was_open, probe = one(self.counter, organization), self.open, self.probe
        snoozed = self.breakers.aside(job, self.now, jitter)
        assert self.probe == probe, "what is only asked about becomes no probe"
        if snoozed is None:
            self.breakers.let_run(job, self.now)
        assert probe in ("", self.probe), "nobody takes the place of a probe that is under way"
        if snoozed is None:
            self.running[job.identity] = job, self.now, self.probe == job.identity
        else:
            assert was_open
            assert 5 * SECOND <= snoozed.delay <= 151 * SECOND

    @precondition(lambda self: self.running)
    @rule(data=st.data(), host=st.sampled_from(["smtp.example", ""]), attempt=st.integers(1, 3))
    def fail(self, data: st.DataObject, host: str, attempt: int) -> None:
        job, _, _ = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        error, job = Unavailable("away", host=host), replace(job, attempt=attempt)
        outcome = self.breakers.failed(job, judge(job, failed(error), 0.0), error, self.now, 0.5)
        assert isinstance(outcome, Snoozed) == self.open

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        job, started_at, was_probe = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if "test.job" in self.breakers.failing:
            self.breakers.succeeded(job, started_at, self.now)
        if was_probe:
            assert not self.open

    @rule(seconds=st.sampled_from([0.1, 1, 5, 20]))
    def wait(self, seconds: float) -> None:
        # No run outlives its timeout, which is what frees the place of a lost probe.
        oldest = min((started_at for _, started_at, _ in self.running.values()), default=self.now)
        self.now = min(self.now + timedelta(seconds=seconds), oldest + HANDLER.timeout)

    @invariant()
    def only_what_runs_is_a_probe(self) -> None:
        assert self.probe == "" or self.running[self.probe][2]

    @invariant()
    def probes_come_within_a_cool_down(self) -> None:
        for breaker in self.breakers.failing.get("test.job", {}).values():
            assert breaker.until is None or breaker.until - self.now <= LONGEST


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestMachine = Machine.TestCase
