"""Which limits hold for a delivery: the queues' own, and what operators have said.

A rule is a scope and what is allowed in it. A scope states any of queue, job type, provider and organization; `*`
stands for each one of them, with an allowance of its own. For each set of dimensions that some rule states, a
delivery is held to one rule: the most specific one. The organization counts first: a rule for it goes before
one for its plan (`plan:NAME`), and that before one for each organization.
"""

import asyncio
import itertools
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from ratelimit import Admission, AdmissionUnavailable, Concurrency, Gate, Limit, Limits
from ratelimit.control import Said
from streams.durations import parse_duration
from streams.errors import ConfigError
from streams.jobs import Handler
from streams.queues import QUEUES, Queue

log = logging.getLogger(__name__)

EACH = "*"
PLAN = "plan:"
"""What the organization of a plan's rules begins with: no organization's id has a colon."""

RULE, ASSIGNED = "limit:", "plan-of:"
"""What the names of rules, and of the plans of organizations, begin with among all that operators say."""

KNOWN_MAX = 10_000
"""Most combinations of job type and organization that are remembered at a time."""

PUSH_MAX = timedelta(days=1)
"""A provider may ask for more; the next job after that asks it again."""

PUSH_RETRY = timedelta(milliseconds=500)

Kind = Literal["rate", "concurrency"]
KINDS: tuple[Kind, ...] = ("rate", "concurrency")


class Scope(NamedTuple):
    """What a rule holds for; a dimension that is None does not matter to it."""

    queue: str | None = None
    type: str | None = None
    provider: str | None = None
    organization: str | None = None

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in zip(self._fields, self, strict=True) if value)

    @classmethod
    def of_text(cls, text: str) -> "Scope":
        """Return the scope of a text such as `queue=emails,organization=*`; raises ValueError."""
        stated = dict(part.split("=", 1) for part in text.split(","))
        if not stated.keys() <= set(cls._fields):
            raise ValueError(f"expected {', '.join(cls._fields)}, got {text!r}")
        return cls(**stated)

    @property
    def shape(self) -> tuple[bool, ...]:
        """Return which dimensions it states."""
        return tuple(value is not None for value in self)


_PER = re.compile(r"(\d+)\s*/\s*(?:(\d+(?:\.\d+)?\s*(?:ms|s|m|h|d))|(ms|s|m|min|h|d))(?:\s+burst\s+(\d+))?")


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` each `per`, and at most `burst` at once (`count` when None)."""

    count: int
    per: timedelta
    burst: int | None = None

    def __str__(self) -> str:
        burst = "" if self.burst is None else f" burst {self.burst}"
        return f"{self.count}/{_per_text(self.per)}{burst}"

    @classmethod
    def of_text(cls, text: str) -> "Rate":
        """Return the rate of a text such as `20/s`, `100/min` or `10/5m burst 3`; raises ValueError."""
        match = _PER.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"expected a rate such as 20/s, 100/min or 10/5m burst 3, got {text!r}")
        count, per, unit, burst = match.groups()
        duration = parse_duration(per or f"1{unit.removesuffix('in')}")
        rate = cls(int(count), duration, None if burst is None else int(burst))
        rate.limit(text)
        return rate

    def limit(self, name: str) -> Limit:
        """Return it as admission takes it; raises ValueError when that refuses it."""
        return Limit(name, self.count, self.per, self.burst)


Allowed = Rate | int | None
"""A rate, or how many may run at a time; None: as many as want to."""


def allowed_of_text(kind: Kind, text: str) -> Allowed:
    """Return what a text allows: a rate, a number of jobs at a time, or `none`; raises ValueError."""
    if text == "none":
        return None
    if kind == "rate":
        return Rate.of_text(text)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"expected how many jobs may run at a time, at least 1, or none, got {text!r}")
    return int(text)


def allowed_text(allowed: Allowed) -> str:
    """Return the text of which `allowed_of_text` makes the same again."""
    return "none" if allowed is None else str(allowed)


class Rule(NamedTuple):
    """That so much is allowed in a scope."""

    kind: Kind
    scope: Scope
    allowed: Allowed

    @property
    def name(self) -> str:
        """Return the name under which operators say it."""
        return f"{RULE}{self.kind}:{self.scope}"

    @classmethod
    def of_said(cls, name: str, value: str) -> "Rule":
        """Return the rule that was said; raises ValueError."""
        kind, _, scope = name.removeprefix(RULE).partition(":")
        if kind not in KINDS:
            raise ValueError(f"expected {' or '.join(KINDS)}, got {kind!r}")
        return cls(kind, Scope.of_text(scope), allowed_of_text(kind, value))


def own_rules(queues: Iterable[Queue] = tuple(QUEUES.values())) -> Iterator[Rule]:
    """Return the rules that hold while nobody says otherwise: the queues' own limits."""
    for queue in queues:
        if queue.limit is not None:
            organization = EACH if queue.limit.scope == "organization" else None
            scope = Scope(queue.name, organization=organization)
            yield Rule("rate", scope, Rate(queue.limit.count, queue.limit.per))


class Held(NamedTuple):
    """What a delivery is held to, and what it costs: at most as much as its tightest limit ever gives at once."""

    limits: Limits
    cost: int


class Rules:
    """All rules and plans that hold, as far as this process has heard."""

    def __init__(self, own: Iterable[Rule] = ()) -> None:
        self._own = {(rule.kind, rule.scope): rule.allowed for rule in own}
        self._said: dict[tuple[Kind, Scope], Allowed] = {}
        self.plan_of: dict[str, str] = {}
        """Organization to its plan."""

    def hear(self, news: Iterable[Said]) -> bool:
        """Take what operators said, and return whether any of it was about limits."""
        heard = False
        for said in news:
            if said.name.startswith((RULE, ASSIGNED)):
                heard = True
                try:
                    self._take(said)
                except ValueError as error:
                    log.error("%s is not understood, so it changes nothing here: %s", said.name, error)
        return heard

    def _take(self, said: Said) -> None:
        if said.name.startswith(ASSIGNED):
            organization = said.name.removeprefix(ASSIGNED)
            if said.value is None:
                self.plan_of.pop(organization, None)
            else:
                self.plan_of[organization] = said.value
            return
        kind, scope, allowed = Rule.of_said(said.name, said.value or "none")
        if said.value is None:
            self._said.pop((kind, scope), None)
        else:
            self._said[kind, scope] = allowed

    def all(self) -> list[tuple[Rule, bool]]:
        """Return each rule that holds, and whether operators have said it."""
        rules = [
            (Rule(kind, scope, allowed), (kind, scope) in self._said)
            for (kind, scope), allowed in {**self._own, **self._said}.items()
        ]
        return sorted(rules, key=lambda one: (str(one[0].scope), one[0].kind))

    def shapes(self) -> list[tuple[Kind, tuple[bool, ...]]]:
        """Return each kind and set of dimensions that some rule states."""
        return sorted({(kind, scope.shape) for kind, scope in itertools.chain(self._own, self._said)})

    def allowed(self, kind: Kind, scope: Scope) -> Allowed:
        """Return what the most specific rule allows in a scope without `*`; None when nothing limits it."""
        plan = self.plan_of.get(scope.organization or "")
        organizations = [scope.organization, PLAN + plan if plan else None, EACH]
        choices = [
            [value] if value is None else list(filter(None, organizations)) if at == 3 else [value, EACH]
            for at, value in enumerate(scope)
        ]
        # The organization varies slowest: whoever has a rule of its own is held to that.
        for organization in choices[3]:
            for queue, job_type, provider in itertools.product(*choices[:3]):
                key = kind, Scope(queue, job_type, provider, organization)
                for rules in (self._said, self._own):
                    if key in rules:
                        return rules[key]
        return None


class DeliveryLimits:
    """What each delivery is held to; asked for each one, and so a dict of what was worked out before."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules(own_rules())
        self._shapes = self.rules.shapes()
        self._known: dict[tuple[str, str], Held] = {}
        self._shared: dict[str, Limit | Concurrency | Gate] = {}
        self._pushed: dict[str, float] = {}
        self._push = asyncio.Event()
        self.refusals: Counter[tuple[str, str, str]] = Counter()
        """How often a limit refused a job: by queue, kind of the limit, and what it holds back."""

    def refused(self, queue_name: str, by: str) -> None:
        """Count that a limit refused a job."""
        self.refusals[queue_name, by.partition(":")[0], holds(by)] += 1

    def of(self, handler: Handler, organization: str) -> Held:
        """Return the limits and the cost of a delivery; the same tuple for all that are held to the same."""
        held = self._known.get((handler.job_type, organization))
        return held or self._work_out(handler, organization)

    def hear(self, news: Iterable[Said]) -> bool:
        """Take what operators said, and return whether limits have changed."""
        if not self.rules.hear(news):
            return False
        self._shapes = self.rules.shapes()
        self._known.clear()
        self._shared.clear()
        return True

    def _work_out(self, handler: Handler, organization: str) -> Held:
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
            self._shared.clear()
        whole = Scope(handler.queue.name, handler.job_type, handler.provider, organization)
        limits = [Gate(gate_name(handler.provider))] if handler.provider else list[Any]()
        for kind, shape in self._shapes:
            scope = Scope(*(value if stated else None for value, stated in zip(whole, shape, strict=True)))
            if scope.shape == shape and (limit := self._limit(kind, scope)) is not None:
                limits.append(limit)
        rates = [limit.capacity for limit in limits if isinstance(limit, Limit)]
        held = Held(tuple(limits), min([handler.cost, *rates]))
        self._known[handler.job_type, organization] = held
        return held

    def _limit(self, kind: Kind, scope: Scope) -> Limit | Concurrency | Gate | None:
        name = f"{kind}:{scope}"
        if name not in self._shared:
            allowed = self.rules.allowed(kind, scope)
            if allowed is None:
                return None
            self._shared[name] = (
                Concurrency(name, allowed) if isinstance(allowed, int) else allowed.limit(name)
            )
        return self._shared[name]

    # -- what providers ask for -------------------------------------------------------------------------

    def push(self, provider: str, wait: timedelta) -> None:
        """Let no job of a provider be admitted anywhere for so long, as it has asked for."""
        until = time.monotonic() + min(wait, PUSH_MAX).total_seconds()
        self._pushed[provider] = max(until, self._pushed.get(provider, until))
        self._push.set()

    async def pushing(self, admission: Admission) -> None:
        """Carry out pushes until cancelled; one that the ledger cannot take is repeated until it can."""
        while True:
            await self._push.wait()
            self._push.clear()
            while self._pushed:
                provider, until = next(iter(self._pushed.items()))
                left = timedelta(seconds=until - time.monotonic())
                try:
                    if left > timedelta(0):
                        await admission.push(gate_name(provider), left)
                except AdmissionUnavailable as error:
                    log.warning("that %s asked for a wait could not be told: %s", provider, error)
                    await asyncio.sleep(PUSH_RETRY.total_seconds())
                    continue
                if self._pushed[provider] == until:
                    del self._pushed[provider]


def gate_name(provider: str) -> str:
    """Return the name of the gate that a provider's 429 shuts."""
    return f"gate:provider={provider}"


def holds(by: str) -> Literal["all", "organization", "delivery"]:
    """Return what a limit that refused a job holds back, by its name: its whole queue, one lane of it, or less."""
    if "type=" in by or "provider=" in by:
        return "delivery"
    return "organization" if "organization=" in by else "all"


def is_place(by: str) -> bool:
    """Return whether a limit is one of jobs at a time, whose wait ends when any of them does."""
    return by.startswith("concurrency:")


def check_scope(stated: Mapping[str, str | None], *, types: Iterable[str], providers: Iterable[str]) -> Scope:
    """Return the scope that an operator states; raises ConfigError when it can hold for no job."""
    scope = Scope(**stated)
    if not any(scope):
        raise ConfigError(
            "a limit holds for a queue, a job type, a provider, an organization, or several of them"
        )
    known = {"queue": list(QUEUES), "type": sorted(types), "provider": sorted(providers)}
    for name, names in known.items():
        value = getattr(scope, name)
        if value not in (None, EACH, *names):
            raise ConfigError(f"unknown {name} {value!r}; expected one of {', '.join(names)}, or {EACH}")
    return scope


def _per_text(duration: timedelta) -> str:
    for unit, name in (("d", "days"), ("h", "hours"), ("m", "minutes"), ("s", "seconds")):
        count, rest = divmod(duration, timedelta(**{name: 1}))
        if not rest:
            return unit if count == 1 else f"{count}{unit}"
    return f"{duration // timedelta(milliseconds=1)}ms"
