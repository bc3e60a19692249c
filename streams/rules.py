"""What operators allow: rules, and the texts in which they are said.

A rule is a scope and what is allowed in it. A scope states any of queue, job type, provider and organization; `*`
stands for each one of them, with an allowance of its own. For each set of dimensions that some rule states, the
most specific rule counts. The organization counts first: a rule for it goes before one for its plan
(`plan:NAME`), and that before one for each organization.
"""

import itertools
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple, TypeVar

from ratelimit import Limit
from ratelimit.control import Said
from streams.durations import parse_duration
from streams.errors import ConfigError
from streams.queues import QUEUES, Queue
from streams.settings import LEAST_WEIGHT, MOST_WEIGHT

log = logging.getLogger(__name__)

EACH = "*"
PLAN = "plan:"
"""What the organization of a plan's rules begins with: no organization's id has a colon."""

RULE, ASSIGNED = "limit:", "plan-of:"
"""What the names of rules, and of the plans of organizations, begin with among all that operators say."""

Kind = Literal["rate", "concurrency", "weight", "backlog"]
KINDS: tuple[Kind, ...] = ("rate", "concurrency", "weight", "backlog")

STANDING: tuple[Kind, ...] = ("weight", "backlog")
"""Of an organization as a whole, and nothing that admission is asked about."""

T = TypeVar("T")


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


Allowed = Rate | int | float | None
"""A rate, a number of jobs, or a weight; None: as much as anybody wants."""


def allowed_of_text(kind: Kind, text: str) -> Allowed:
    """Return what a text allows: a rate, a number of jobs, a weight, or `none`; raises ValueError."""
    if kind == "weight":
        return _weight_of_text(text)
    if text == "none":
        return None
    if kind == "rate":
        return Rate.of_text(text)
    if not text.isdecimal() or int(text) < 1:
        what = "may run at a time" if kind == "concurrency" else "may be unfinished"
        raise ValueError(f"expected how many jobs {what}, at least 1, or none, got {text!r}")
    return int(text)


def _weight_of_text(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise ValueError(f"expected a weight from {LEAST_WEIGHT} to {MOST_WEIGHT}, got {text!r}")
    return weight


def allowed_text(allowed: Allowed) -> str:
    """Return the text of which `allowed_of_text` makes the same again."""
    if isinstance(allowed, float):
        return str(allowed).removesuffix(".0")
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
    def of_said(cls, name: str, value: str | None) -> "Rule":
        """Return the rule that was said, or taken back when there is no value; raises ValueError."""
        kind, _, scope = name.removeprefix(RULE).partition(":")
        if kind not in KINDS:
            raise ValueError(f"expected {' or '.join(KINDS)}, got {kind!r}")
        rule = cls(kind, Scope.of_text(scope), None if value is None else allowed_of_text(kind, value))
        rule.check()
        return rule

    def check(self) -> None:
        """Raise ValueError when there is nothing of this kind in its scope."""
        if self.kind not in STANDING:
            return
        if self.scope.organization is None or any(self.scope[:3]):
            raise ValueError(
                f"a {self.kind} is of an organization or a plan as a whole, and of no queue, job type or provider; "
                f"got {self.scope}"
            )
        if self.kind == "weight" and self.scope.organization == EACH:
            raise ValueError(f"a weight is beside that of the others, which is 1, so {EACH} has none")


def own_rules(queues: Iterable[Queue] = tuple(QUEUES.values())) -> Iterator[Rule]:
    """Return the rules that hold while nobody says otherwise: the queues' own limits."""
    for queue in queues:
        if queue.limit is not None:
            organization = EACH if queue.limit.scope == "organization" else None
            scope = Scope(queue.name, organization=organization)
            yield Rule("rate", scope, Rate(queue.limit.count, queue.limit.per))


class Rules:
    """All rules and plans that hold, as far as this process has heard."""

    def __init__(self, own: Iterable[Rule] = ()) -> None:
        self._own = {(rule.kind, rule.scope): rule.allowed for rule in own}
        self._said: dict[tuple[Kind, Scope], Allowed] = {}
        self.plan_of: dict[str, str] = {}
        """Organization to its plan."""
        self.weights: dict[str, float] = {}
        """Organization, or `plan:NAME`, to its weight."""
        self.caps: dict[str, int | None] = {}
        """Organization, `plan:NAME` or `*` to how many unfinished jobs it may have."""

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
        if heard:
            self._sort()
        return heard

    def _sort(self) -> None:
        weights: dict[str, float] = {}
        caps: dict[str, int | None] = {}
        for (kind, scope), allowed in self._said.items():
            if kind == "weight" and isinstance(allowed, float):
                weights[scope.organization or ""] = allowed
            elif kind == "backlog" and not isinstance(allowed, Rate | float):
                caps[scope.organization or ""] = allowed
        # Other threads may be looking.
        self.weights, self.caps = weights, caps

    def _take(self, said: Said) -> None:
        if said.name.startswith(ASSIGNED):
            organization = said.name.removeprefix(ASSIGNED)
            if said.value is None:
                self.plan_of.pop(organization, None)
            else:
                self.plan_of[organization] = said.value
            return
        kind, scope, allowed = Rule.of_said(said.name, said.value)
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
        """Return each kind of limit and set of dimensions that some rule states."""
        stated = itertools.chain(self._own, self._said)
        return sorted({(kind, scope.shape) for kind, scope in stated if kind not in STANDING})

    def weight(self, organization: str, configured: Mapping[str, float]) -> float:
        """Return what operators said of an organization or else its plan, or the configured weight, or 1."""
        said = self._of(self.weights, organization)
        return configured.get(organization, 1.0) if said is None else said

    def cap(self, organization: str) -> int | None:
        """Return how many unfinished jobs an organization may have; None when as many as it wants."""
        return self._of(self.caps, organization)

    def _of(self, said: Mapping[str, T], organization: str) -> T | None:
        if not said:
            return None
        for name in (organization, PLAN + self.plan_of.get(organization, ""), EACH):
            if name in said:
                return said[name]
        return None

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
