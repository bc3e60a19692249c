"""When everything fails: jobs whose provider is away wait, and spend no attempt on it.

closed ──failures in a row──▶ open ──cool-down over──▶ half-open: one job is the probe
   ▲                           ▲                           │
   │                           └──────────it fails─────────┤
   └────────────────────it ends otherwise──────────────────┘

Pure and synchronous: instants and random numbers are arguments. The reasons: docs/explanation/outages.md.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from providers.errors import Refused, Unavailable
from streams.delivery import EPOCH, Delivery
from streams.errors import Poison, Transient
from streams.outcome import Cancelled, Completed, Outcome, Retry, Snoozed

HOST_STREAK = 5
"""So many failures in a row for want of one host are an outage of that host."""
TYPE_STREAK = 20
"""So many jobs of a type that fail in a row, for whatever reason, are an outage of the type."""

SHORTEST, LONGEST = timedelta(seconds=1), timedelta(seconds=60)
"""The bounds of a cool-down, which is half as long as the outage has lasted: so a heal is noticed in proportion."""
SAME_OUTAGE = timedelta(minutes=1)
"""What opens again so soon after it closed has not recovered: its outage goes on."""
PROBE_GRACE = timedelta(seconds=10)
"""A probe of which nothing is heard so long after its timeout was lost, as in a rebalance."""
HOSTS = 1_000
"""Most hosts of a type that are remembered: payloads name them, so there may be any number."""

_HOP = timedelta(seconds=5)
_ASIDE = (
    (timedelta(minutes=5), timedelta(minutes=2)),
    (timedelta(seconds=30), timedelta(seconds=30)),
    (timedelta(0), _HOP),
)
"""From which age of an outage on jobs step aside for how long: the delay of a retry topic each."""
_LATENESS = timedelta(milliseconds=900)
_APART, _FARTHEST = timedelta(milliseconds=5), timedelta(minutes=2)
"""Jobs that step aside come back one after the other, unless that would take too long: other types share the worker."""


class Breaker:
    """One place where jobs fail: a job type, or a host that jobs of the type name.

    Open, it holds back the organization whose jobs failed, and every organization once a second one's did.
    """

    def __init__(self, name: str) -> None:
        self._name = self._missing = name
        self._probed_at = self._lost_at = self._opened_at = self._since = self._closed_at = self._turn = EPOCH
        self.until: datetime | None = None
        """The end of the cool-down, or None when it is closed."""
        self.probe = ""
        """The identity of the job that tries, or empty."""
        self._forget()

    def _forget(self) -> None:
        self._jobs: set[str] = set()
        self._organizations: set[str] = set()
        self._host, self._at_host = "", 0

    def failed(self, delivery: Delivery, host: str, now: datetime, jitter: float) -> None:
        """Count a failure; `host` is what was not available, or empty."""
        if len(self._organizations) < 2:
            self._organizations.add(delivery.organization_id)
        if self.until is not None:
            if self.probe == delivery.identity:
                self._open(now, jitter, again=True)
            return
        self._jobs.add(delivery.identity)
        if host:
            self._at_host = self._at_host + 1 if host == self._host else 1
            self._host = host
        if self._at_host >= HOST_STREAK or len(self._jobs) >= TYPE_STREAK:
            self._missing = self._host if self._at_host >= HOST_STREAK else self._name
            self._opened_at = now
            self._open(now, jitter, again=now - self._closed_at <= SAME_OUTAGE)

    def _open(self, now: datetime, jitter: float, *, again: bool) -> None:
        if not again:
            self._since = self._turn = now
        cool_down = min(max((now - self._since) / 2, SHORTEST), LONGEST)
        self.until, self.probe = now + cool_down * (1 + jitter) / 2, ""

    def holds(self, delivery: Delivery, now: datetime) -> bool:
        """Return whether a delivery may not run now."""
        if self.until is None or self.probe == delivery.identity:
            return False
        if len(self._organizations) == 1 and delivery.organization_id not in self._organizations:
            return False
        return now < self.until or (self.probe != "" and now < self._lost_at)

    def let_run(self, delivery: Delivery, now: datetime) -> None:
        """Note that a delivery that is not held runs: as the probe, if one is due."""
        if self.until is not None and self.until <= now and (not self.probe or self._lost_at <= now):
            self.probe, self._probed_at = delivery.identity, now
            self._lost_at = now + delivery.handler.timeout + PROBE_GRACE

    def aside(self, now: datetime, jitter: float) -> Snoozed:
        """Return the snooze of a delivery that does not run: longer in an older outage, and behind many others."""
        step = next(delay for age, delay in _ASIDE if now - self._since >= age)
        if self.probe and now - self._probed_at < _HOP:
            step = _HOP  # by then it is likely to be known whether all is well
        self._turn = min(max(self._turn, now) + _APART, now + _FARTHEST)
        wait = max(step, (self.until or now) - now, self._turn - now) * (1 + jitter / 4)
        # In hops of 5 s or more, each of them a little late: what is short of 5 s would hop each second.
        delay = wait // _HOP * _HOP + _LATENESS
        return Snoozed(delay, f"outage of {self._missing} until {now + delay:%Y-%m-%dT%H:%M:%SZ}")

    def answered(self, started_at: datetime, now: datetime) -> None:
        """Close it, or end a streak: an attempt did not fail."""
        if self.until is not None:
            if started_at < self._opened_at:
                return
            self.until, self.probe, self._closed_at = None, "", now
        self._forget()

    def over(self, now: datetime) -> bool:
        """Return whether nothing about it needs to be remembered."""
        return self.until is None and not self._jobs and now - self._closed_at > SAME_OUTAGE


class Breakers:
    """The breakers of one queue's job types on one worker: fed with every outcome, asked of every record and run."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        """Job types of which something is open; while it is empty there is nothing to ask."""
        self.failing: dict[str, dict[str, Breaker]] = {}
        """Of job types that failed lately: the breaker of the type as "", and those of hosts by their names."""

    def aside(self, delivery: Delivery, now: datetime, jitter: float) -> Snoozed | None:
        """Return the snooze of a delivery that must step aside, or None when it may run."""
        for breaker in self._of(delivery):
            if breaker.holds(delivery, now):
                return breaker.aside(now, jitter)
        return None

    def let_run(self, delivery: Delivery, now: datetime) -> None:
        """Note that a delivery that need not step aside is about to run: it may be the probe."""
        for breaker in self._of(delivery):
            breaker.let_run(delivery, now)

    def succeeded(self, delivery: Delivery, started_at: datetime, now: datetime) -> None:
        """Take a success of a job type that is `failing`; no other's matters."""
        job_type = delivery.handler.job_type
        places = self.failing[job_type]
        for place in (_named_host(delivery), ""):
            if place in places:
                places[place].answered(started_at, now)
                if places[place].over(now):
                    del places[place]
        if not places:
            del self.failing[job_type]
        self._note(job_type)

    def failed(
        self, delivery: Delivery, outcome: Outcome, error: BaseException | None, now: datetime, jitter: float
    ) -> Outcome:
        """Take an outcome that is no success; returns it, or in an outage a snooze in its place."""
        if isinstance(outcome, Cancelled):
            self.release(delivery)
            return outcome
        if isinstance(outcome, Completed | Snoozed) or isinstance(error, Poison | Refused):
            # Somebody answered, if only "not now" or "never": that closes behind a probe, and ends no streak.
            if any(breaker.probe == delivery.identity for breaker in self._of(delivery)):
                self.succeeded(delivery, now, now)
            return outcome
        failing = self._count(delivery, error.host if isinstance(error, Unavailable) else "", now, jitter)
        self._note(delivery.handler.job_type)
        for breaker in failing:
            if breaker.until is not None:
                snoozed = breaker.aside(now, jitter)
                if isinstance(outcome, Retry) and isinstance(error, Transient) and error.delay is not None:
                    return replace(snoozed, delay=max(snoozed.delay, outcome.delay))
                return snoozed
        return outcome

    def _count(self, delivery: Delivery, missing: str, now: datetime, jitter: float) -> list[Breaker]:
        """Count a failure for want of a host, if it is known which; returns the breakers that it counts for."""
        job_type, named = delivery.handler.job_type, _named_host(delivery)
        places = self.failing.setdefault(job_type, {})
        counting: list[Breaker] = []
        if named and missing:
            if named not in places and len(places) > HOSTS:
                del places[next(host for host in places if host)]
            counting.append(places.setdefault(named, Breaker(named)))
            counting[0].failed(delivery, missing, now, jitter)
        whole = places.setdefault("", Breaker(job_type))
        if whole.until is not None or not any(breaker.until for breaker in counting):
            # What the outage of one host explains says nothing about the others.
            counting.append(whole)
            whole.failed(delivery, "" if named else missing, now, jitter)
        return counting

    def release(self, delivery: Delivery) -> None:
        """Let another job be the probe: this one does not run after all."""
        for breaker in self._of(delivery):
            if breaker.probe == delivery.identity:
                breaker.probe = ""

    def _note(self, job_type: str) -> None:
        if any(one.until is not None for one in self.failing.get(job_type, {}).values()):
            self.open.add(job_type)
        else:
            self.open.discard(job_type)

    def _of(self, delivery: Delivery) -> list[Breaker]:
        places = self.failing.get(delivery.handler.job_type)
        if not places:
            return []
        return [places[place] for place in dict.fromkeys((_named_host(delivery), "")) if place in places]


def _named_host(delivery: Delivery) -> str:
    """Return the host that a payload names in its field `url`; empty for types whose provider is the same for all."""
    url = getattr(delivery.payload, "url", None)
    try:
        return (urlsplit(url).hostname or "") if isinstance(url, str) else ""
    except ValueError:
        return ""
