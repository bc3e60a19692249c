"""What a delivery is held to, by the rules that this worker has heard of.

For each set of dimensions that some rule states, that is the most specific one of them.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from ratelimit import Admission, AdmissionUnavailable, Concurrency, Gate, Limit, Limits
from ratelimit.control import Said
from streams.jobs import Handler
from streams.rules import Kind, Rate, Rules, Scope, own_rules

log = logging.getLogger(__name__)

KNOWN_MAX = 10_000
"""Most combinations of job type and organization that are remembered at a time."""

PUSH_MAX = timedelta(days=1)
"""A provider may ask for more; the next job after that asks it again."""

PUSH_RETRY = timedelta(milliseconds=500)


class Held(NamedTuple):
    """What a delivery is held to, and what it costs: at most as much as its tightest limit ever gives at once."""

    limits: Limits
    cost: int


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
                allowed.limit(name) if isinstance(allowed, Rate) else Concurrency(name, int(allowed))
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
