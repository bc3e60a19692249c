"""The oracle: what must hold whatever happened, judged from the outside.

Each invariant is a function from a history to a verdict with a figure; a verdict against the system names a job
and tells its story. That each of them can fail is tested in tests/unit/test_chaos_oracle.py.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from streams.offset_map import settled_beyond
from streams.queues import RETRY_DELAYS
from tests.chaos.history import Carried, History, Place, Told
from tests.chaos.repeats import executions_explained, one_at_a_time, told_again
from tests.chaos.verdict import Verdict, against
from tracking.states import FINAL, MOVES, Status

WARM_SECONDS = 15.0
"""A worker that has just started imports, connects and fills its caches; on a machine with too much to do, slowly."""


@dataclass(slots=True)
class Limits:
    """What a fault may cost; each fault can ask for others."""

    recovery_seconds: float = 20.0
    """From the heal to at least half the rate of ends before the fault."""
    drain_seconds: float = 60.0
    growth_mib: float = 40.0
    peak_mib: float = 120.0


def judge(history: History, limits: Limits) -> list[Verdict]:
    """Return the verdict on every invariant."""
    return [
        no_loss(history),
        effect_once(history),
        executions_explained(history),
        one_at_a_time(history),
        positions_behind(history),
        legal_moves(history),
        tracking_is_the_fold(history),
        memory_flat(history, limits),
        back_to_normal(history, limits),
        no_secret(history),
    ]


# -- ends and effects ------------------------------------------------------------------------------------


def no_loss(history: History) -> Verdict:
    """Every acknowledged publish comes to exactly one end, the one its job asks for; what is dead has a letter."""
    name = "no loss"
    wanted = {one.job_id: one.end for one in history.published}
    ends = {
        job_id: {event.kind for event in events if event.kind in FINAL and not event.replay}
        for job_id, events in history.events.items()
    }
    figure = f"{len(wanted)} acknowledged, {sum(bool(ends.get(job_id)) for job_id in wanted)} ended"
    letters = {record.job_id for record in history.carried if record.topic.endswith(".dlt")}
    for job_id, end in wanted.items():
        found = ends.get(job_id, set())
        if not found:
            lost = sum(not ends.get(other) for other in wanted)
            return against(history, name, figure, f"{lost} jobs have no end, such as {job_id}", job_id)
        if len(found) > 1 or (end is not None and found != {end}):
            told = " and ".join(sorted(found))
            return against(history, name, figure, f"{job_id} must be {end}, is {told}", job_id)
        if found == {"dead"} and job_id not in letters:
            return against(history, name, figure, f"{job_id} is dead and has no dead letter", job_id)
    return Verdict(name, figure)


def effect_once(history: History) -> Verdict:
    """Each idempotency key whose job completes has its effect, once, and nothing else has one."""
    name = "effect once"
    of_job = {one.job_id: f"{one.organization}-{one.key}" for one in history.published}
    certain = {of_job[one.job_id]: one.job_id for one in history.published if one.end == "completed"}
    possible = {of_job[one.job_id] for one in history.published if one.end in ("completed", None)}
    count = Counter(history.effects)
    figure = f"{len(count)} effects"
    for effect, job_id in certain.items():
        if effect not in count:
            return against(history, name, figure, f"{job_id} has no effect", job_id)
    by_effect = {effect: job_id for job_id, effect in of_job.items()}
    for effect, times in count.items():
        if times > 1 or effect not in possible:
            wrong = f"{effect} happened {times} times" if times > 1 else f"{effect} must not have happened"
            return against(history, name, figure, wrong, by_effect.get(effect, ""))
    return Verdict(name, figure)


# -- positions -------------------------------------------------------------------------------------------


def positions_behind(history: History) -> Verdict:
    """In every commit, all that was committed was settled, its outcome written before; no position goes back."""
    name = "positions"
    settled = _settled(history)
    furthest = {place: list(accumulate(times, max)) for place, times in settled.items()}
    figure = f"{len(history.commits)} commits"
    highest: dict[Place, int] = {}
    told: dict[Place, str] = {}
    for commit in history.commits:
        place, position = (commit.topic, commit.partition), commit.position
        if position < highest.get(place, 0):
            wrong = f"{place[0]}/{place[1]} went back from {highest[place]} to {position}"
            return Verdict(name, figure, wrong)
        highest[place] = position
        known, times = furthest.get(place, []), settled.get(place, [])
        claimed: Iterable[int] = ()
        if 0 < position <= len(known) and known[position - 1] > commit.at:
            claimed = range(position)
        elif commit.metadata != told.get(place, ""):
            told[place], claimed = commit.metadata, settled_beyond(position, commit.metadata)
        offset = next((one for one in claimed if one < len(times) and times[one] > commit.at), None)
        if offset is not None:
            record = next(
                one for one in history.carried if (one.topic, one.partition, one.offset) == (*place, offset)
            )
            wrong = (
                f"{place[0]}/{place[1]} was committed at {position}, and {offset} was covered but not settled"
            )
            return against(history, name, figure, wrong, record.job_id)
    if not history.commits:
        return Verdict(name, figure, "nothing was committed")
    return Verdict(name, figure)


def _settled(history: History) -> dict[Place, list[float]]:
    """Return when the record at each offset of each queue and retry topic was settled, infinity for never."""
    letters: dict[str, float] = {}
    for record in history.carried:
        if record.topic.endswith(".dlt"):
            letters[record.origin] = min(record.written, letters.get(record.origin, record.written))
    found: dict[Place, dict[int, float]] = defaultdict(dict)
    for record in history.carried:
        if not record.topic.endswith(".dlt"):
            found[record.topic, record.partition][record.offset] = _settled_at(history, record, letters)
    # An offset that holds no record has nothing to settle.
    return {
        place: [times.get(offset, 0.0) for offset in range(max(times) + 1)] for place, times in found.items()
    }


def _settled_at(history: History, record: Carried, letters: dict[str, float]) -> float:
    origin = record.origin or record.place
    place = (record.attempt, record.snoozes)
    times = [letters[origin]] if origin in letters else []
    times += [
        event.written
        for event in history.events.get(record.job_id, [])
        if event.kind in FINAL
        or (event.kind in ("retried", "snoozed") and (event.attempt, event.snoozes) >= place)
    ]
    times += [
        other.written
        for other in history.records.get(record.job_id, [])
        if other is not record
        and not other.topic.endswith(".dlt")
        and (other.attempt, other.snoozes) >= place
        and other.written >= record.written
        # A copy that a worker made names where it comes from; the forwarder changes nothing.
        and (other.origin == origin or (record.topic in RETRY_DELAYS and other.origin == record.origin))
    ]
    return min(times, default=float("inf"))


# -- states ----------------------------------------------------------------------------------------------

_STATE = {
    "queued": Status.QUEUED, "replayed": Status.QUEUED, "started": Status.RUNNING, "progressed": Status.RUNNING,
    "snoozed": Status.DELAYED, "retried": Status.RETRYING, "completed": Status.COMPLETED, "dead": Status.DEAD,
    "cancelled": Status.CANCELLED,
}  # fmt: skip

_UNTOLD = {Status.DELAYED: Status.QUEUED, Status.RETRYING: Status.QUEUED, Status.QUEUED: Status.RUNNING}
"""Coming due has no event, and the start of a short job has none either."""


def legal_moves(history: History) -> Verdict:
    """The events of a job, in the order of their topic, are moves of the table; an end may be told twice, if a crash

    came between telling it and marking it, and what a frozen worker still had to say comes late.
    """
    name = "moves"
    moves, repeated = 0, 0
    for job_id, events in history.events.items():
        state: Status | None = None
        last: dict[str, float] = {}
        for event in events:
            after = _state_after(event)
            late = event.at <= last.get(event.worker, 0.0)
            last[event.worker] = max(event.at, last.get(event.worker, 0.0))
            if state is None or event.kind == "queued":
                # A publish tells its job in two topics: its worker may be quicker than its own event.
                state = state or after
                continue
            if late and event.kind in ("started", "progressed"):
                # One batch of one worker: it began before it ended, and was only written behind it.
                continue
            moves += 1
            if _legal(state, after):
                state = after
            elif told_again(history, event):
                repeated += 1
            else:
                figure = f"{moves} moves, {repeated} told again"
                wrong = f"{job_id} moves from {state} to {after}"
                return against(history, name, figure, wrong, job_id)
    return Verdict(name, f"{moves} moves, {repeated} told again")


def _state_after(event: Told) -> Status:
    return Status.DELAYED if event.kind == "queued" and event.deferred else _STATE[event.kind]


def _legal(before: Status, after: Status) -> bool:
    at: Status | None = before
    while at is not None:
        if after in MOVES[at]:
            return True
        at = _UNTOLD.get(at)
    return False


def tracking_is_the_fold(history: History) -> Verdict:
    """The store holds what the events fold to, and the same again when it is rebuilt from the topic."""
    name = "tracking"
    figure = f"{len(history.stored)} rows"
    if not history.stored and history.published:
        return Verdict(name, figure, "the store is empty")
    for what, rows in (("the fold of the events", history.folded), ("the rebuilt store", history.rebuilt)):
        differing = set(history.stored) ^ set(rows)
        if differing or len(rows) != len(history.stored):
            first = min(differing, default="")
            job_id = str(json.loads(first)["job_id"]) if first else ""
            wrong = (
                f"the store differs from {what} in {len(differing)} rows, such as that of {job_id}: {first}"
            )
            return against(history, name, figure, wrong, job_id)
    return Verdict(name, figure)


# -- the workers and what comes back ---------------------------------------------------------------------


def memory_flat(history: History, limits: Limits) -> Verdict:
    """No worker keeps growing: what it holds late is what it held once it was under way."""
    name = "memory"
    held: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in history.memory:
        held[one.pid].append((one.at, one.mib))
    peak, growth = 0.0, 0.0
    for samples in held.values():
        samples.sort()
        peak = max(peak, *(mib for _, mib in samples))
        sizes = [mib for at, mib in samples if at >= samples[0][0] + WARM_SECONDS]
        if samples[-1][0] - samples[0][0] >= WARM_SECONDS + 10:
            quarter = len(sizes) // 4
            growth = max(growth, median(sizes[-quarter:]) - median(sizes[quarter : 2 * quarter]))
    figure = f"{peak:.0f} MiB, +{growth:.0f}"
    if peak > limits.peak_mib or growth > limits.growth_mib:
        return Verdict(name, figure, f"a worker grew to {peak:.0f} MiB, by {growth:.0f} MiB while it ran")
    return Verdict(name, figure)


def back_to_normal(history: History, limits: Limits) -> Verdict:
    """After the heal, jobs end as fast as before within a bound, and everything ends."""
    name = "recovery"
    if history.healed_at is None:
        return Verdict(name, "never healed", "the fault did not heal what it had done")
    if history.drained_after is None:
        return Verdict(name, "not drained", f"work was left {limits.drain_seconds:g} s after the heal")
    ends = Counter(int(event.written) for event in history.told if event.kind in FINAL)
    hurt_at = min((incident.begin for incident in history.incidents), default=history.healed_at)
    before = [count for second, count in ends.items() if second < int(hurt_at)]
    figure = f"drained in {history.drained_after:.1f} s"
    if history.drained_after > limits.drain_seconds:
        return Verdict(name, figure, f"draining took longer than {limits.drain_seconds:g} s")
    if not before:
        return Verdict(name, figure)
    # What caught up with a backlog was quicker than what came in, and need not be again.
    times = sorted(one.at for one in history.published)
    came = len(times) / max(times[-1] - times[0], 1.0)
    rate = min(median(before), came)
    wanted = rate / 2
    quick = [second for second, count in ends.items() if second >= int(history.healed_at) and count >= wanted]
    recovered = max(min(quick, default=float("inf")) - history.healed_at, 0.0)
    figure = f"{rate:.0f}/s again in {recovered:.1f} s, {figure}"
    if recovered > limits.recovery_seconds and _work_was_left(history):
        return Verdict(
            name, figure, f"half of {rate:.0f} ends/s took more than {limits.recovery_seconds:g} s"
        )
    return Verdict(name, figure)


def _work_was_left(history: History) -> bool:
    healed_at = history.healed_at or 0.0
    return any(one.at > healed_at for one in history.published)


def no_secret(history: History) -> Verdict:
    """The secret that every payload carries is in no log, header, event, row or key."""
    figure = f"{len(history.leaks)} leaks"
    return Verdict("secrets", figure, f"seen in {history.leaks[0]}" if history.leaks else "")
