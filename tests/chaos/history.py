"""What happened while a fault lasted, as plain values: everything the oracle judges by, and nothing it could ask."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

Place = tuple[str, int]
"""A topic and a partition."""


@dataclass(frozen=True, slots=True)
class Published:
    """A job whose publish was acknowledged, and the kind of end that it must come to, or None for any."""

    job_id: str
    organization: str
    key: str
    at: float
    end: str | None = "completed"


@dataclass(frozen=True, slots=True)
class Execution:
    """One call of a handler; `ended` is None for one that never came back, `how` is end, failed or cancelled."""

    call: str
    job_id: str
    effect: str
    attempt: int
    pid: int
    started: float
    ended: float | None = None
    how: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A lifecycle event in the order of its topic; `written` is the record's own time, whatever `at` claims."""

    job_id: str
    kind: str
    attempt: int
    snoozes: int
    replay: str
    written: float
    worker: str
    at: float = 0.0
    """When it happened, by the clock of whoever told it."""
    deferred: bool = False
    """It was published for later."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Carried:
    """A record of a queue, retry or dead-letter topic; what it names is empty where it names nothing."""

    topic: str
    partition: int
    offset: int
    written: float
    job_id: str
    attempt: int
    snoozes: int
    origin: str
    value_hash: str = ""
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that was done to the system; `pid` is the worker it was done to, None for all of them."""

    what: str
    begin: float
    end: float
    pid: int | None = None
    repeats: bool = True
    """Whether jobs that it interrupts may run again."""


@dataclass(frozen=True, slots=True)
class Commit:
    """What a group committed of a partition, taken at `at` by the clock of the broker."""

    at: float
    topic: str
    partition: int
    position: int
    metadata: str = ""
    """Which records are settled beyond the position."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a worker held."""

    pid: int
    at: float
    mib: float


@dataclass
class History:
    """All of it. Times are seconds since the epoch by this machine's clock, which no fault moves."""

    published: list[Published] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    """The effects there are, one for each name."""
    told: list[Told] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    """Of each partition in their order."""
    memory: list[Memory] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    """The rows of the store, as the sink left them."""
    folded: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """Where the canary was seen."""
    healed_at: float | None = None
    drained_after: float | None = None
    """Seconds from the heal until everything had ended and every position had arrived; None when it never did."""

    @cached_property
    def runs(self) -> dict[str, list[Execution]]:
        """Return the executions of each job, the first first."""
        return _grouped(sorted(self.executions, key=lambda one: one.started))

    @cached_property
    def events(self) -> dict[str, list[Told]]:
        return _grouped(self.told)

    @cached_property
    def records(self) -> dict[str, list[Carried]]:
        return _grouped(sorted(self.carried, key=lambda one: one.written))

    def story(self, job_id: str) -> list[str]:
        """Return all that is known about a job, in the order of time."""
        lines: list[tuple[float, str]] = []
        for one in self.published:
            if one.job_id == job_id:
                lines.append((one.at, f"published for {one.organization}, must be {one.end or 'ended'}"))
        for run in self.runs.get(job_id, []):
            lines.append((run.started, f"attempt {run.attempt} starts on {run.pid}"))
            if run.ended is not None:
                lines.append((run.ended, f"attempt {run.attempt} on {run.pid}: {run.how}"))
        for event in self.events.get(job_id, []):
            by = f" by {event.worker}" if event.worker else ""
            why = f" ({event.reason})" if event.reason else ""
            lines.append((event.written, f"event {event.kind}, attempt {event.attempt}{by}{why}"))
        for record in self.records.get(job_id, []):
            why = f" ({record.reason})" if record.reason else ""
            lines.append((record.written, f"record {record.place}, attempt {record.attempt}{why}"))
        for incident in self.incidents:
            whom = "" if incident.pid is None else f" {incident.pid}"
            lines.append(
                (incident.begin, f"-- {incident.what}{whom} for {incident.end - incident.begin:.1f} s")
            )
        lines.sort()
        first = lines[0][0] if lines else 0.0
        return [f"{at - first:8.3f}  {what}" for at, what in lines]

    def save(self, path: Path) -> None:
        """Write everything as JSON lines, each with what it is."""
        with path.open("w") as file:
            for what, one in self._lines():
                file.write(json.dumps([what, one], default=str) + "\n")

    def _lines(self) -> Iterator[tuple[str, Any]]:
        for name in ("published", "executions", "told", "carried", "incidents", "commits", "memory"):
            yield from (
                (name, {key: getattr(one, key) for key in one.__slots__}) for one in getattr(self, name)
            )
        for name in ("effects", "stored", "rebuilt", "leaks", "healed_at", "drained_after"):
            yield name, getattr(self, name)


def _grouped(items: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(item.job_id, []).append(item)
    return found
