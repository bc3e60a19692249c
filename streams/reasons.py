"""Why a job waits, in sentences; pure.

The first thing that is certain decides where the job is: its end by the store, then what the workers hold, then
its lease, then the time it is due, then whether its record was read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from ratelimit import Concurrency, Left, Limit
from streams.errors import UnknownJob
from streams.lanes import LEASED_ELSEWHERE, NO_LEDGER, NOT_DUE
from streams.queues import QUEUES
from streams.rules import Rate
from streams.why import Findings
from tracking.states import FINAL, Status

if TYPE_CHECKING:
    from tracking.jobs import Job

Where = Literal[
    "finished", "running", "ready", "window", "ending", "cancelling", "leased", "retry", "unread", "aside", "unknown"
]  # fmt: skip

# Of several deliveries of one job, the one that is farthest says where it is.
_FARTHEST: tuple[Where, ...] = ("running", "ending", "cancelling", "ready", "window")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a job is, why it is there, and when it starts, as far as that can be said."""

    where: Where
    sentences: tuple[str, ...]
    worker: str | None = None
    starts_at: datetime | None = None


def explain(found: Findings) -> Explanation:
    """Return why a job waits, runs or is over; raises UnknownJob when nobody knows it."""
    job = found.job
    if job is not None and job.status in FINAL:
        return Explanation("finished", (_end(job),), job.worker_id)
    if job is None and not found.held and found.known is None:
        raise UnknownJob(_unknown(found))
    placed = _held(found) or _leased(found) or _retry(found) or _unread(found) or _left_over(found)
    sentences = (*placed.sentences, *_besides(found, placed))
    # Nobody can say when what is paused goes on.
    return Explanation(placed.where, sentences, placed.worker, None if found.pauses else placed.starts_at)


def _unknown(found: Findings) -> str:
    whose = f"{found.job_id} of {found.organization_id}"
    who = "no worker has it, and neither the ledger nor the store knows of it"
    if not found.stored:
        who = "no worker has it, the ledger knows nothing of it, and there is no store that could be asked"
    return f"there is no job {whose} as far as is known: {who}{_silence(found)}"


def _silence(found: Findings) -> str:
    silent = ", ".join(found.answers.silent)
    return f"; not answered by {silent}" if silent else ""


def _end(job: "Job") -> str:
    tries = f"attempt {job.attempt} of {job.max_attempts}"
    where = f" on {job.worker_id}" if job.worker_id else ""
    took = f", after {job.duration_ms / 1000:.1f} s" if job.duration_ms is not None else ""
    at = f"{job.finished_at:%Y-%m-%d %H:%M:%S}Z" if job.finished_at else "an unknown time"
    match job.status:
        case Status.COMPLETED:
            return f"It completed at {at}{where}, in {tries}{took}."
        case Status.CANCELLED:
            return f"It was cancelled at {at}: {job.reason or 'no reason was given'}."
        case _:
            return f"It is dead since {at}{where}, in {tries}: {_error(job) or job.reason or 'no reason was told'}."


def _error(job: "Job") -> str:
    return f"{job.error_kind}: {job.error_message}" if job.error_kind else ""


# -- what workers hold ----------------------------------------------------------------------------------


def _held(found: Findings) -> Explanation | None:
    held = sorted(found.held.items(), key=lambda one: _FARTHEST.index(one[1]["where"]))
    if not held:
        return None
    worker, facts = held[0]
    where: Where = facts["where"]
    tries = f"attempt {facts['attempt']} of {facts['maxAttempts']}"
    sentences: list[str] = []
    starts_at = None
    match where:
        case "running":
            since = datetime.fromisoformat(facts["since"])
            sentences = [
                f"It runs on {worker}, {tries}, for {_span(found.now - since)} by now{_progress(found.job)}."
            ]
        case "ready":
            ahead = facts.get("ahead", 0)
            before = f", with {ahead} before it" if ahead else ""
            sentences = [
                f"It is admitted on {worker}, or asked for, and starts when a slot or its process is free{before}."
            ]
        case "ending":
            sentences = [f"It has ended on {worker}, which is writing down what came of it."]
        case "cancelling":
            sentences = [f"It is cancelled, and {worker} is writing that down."]
        case _:
            queue = found.answers.by_worker[worker]["queue"]
            sentences = list(_waits(found, worker, facts, queue))
            starts_at = _instant(facts["startsAt"])
            if starts_at is not None and not found.pauses:
                sentences.append(f"It starts about {_at(starts_at, found.now)}.")
    return Explanation(where, tuple(sentences), worker, starts_at)


def _progress(job: "Job | None") -> str:
    return f", {job.progress:.0%} done" if job is not None and job.progress is not None else ""


def _waits(found: Findings, worker: str, facts: dict[str, Any], queue: dict[str, Any]) -> Iterator[str]:
    organizations = facts["organizations"]
    share = f"{organizations} organizations share" if organizations > 1 else "its organization alone has"
    yield (
        f"It was read by {worker} and waits for a slot of {facts['queue']}: {share} the {queue['slots']} slots, "
        f"{queue['running']} of them taken."
    )
    position = facts["position"]
    if position is not None:
        before = f"{position} of them go before it" if position else "it is the next of them"
        yield f"Of its organization {facts['lane']} jobs wait there, and {before}."
    for hold in facts["holds"]:
        yield _hold(hold, found, worker)
    if facts["behind"]:
        yield f"{facts['behind']} earlier jobs of its ordering key {facts['orderingKey']!r} go first, one at a time."
    if facts["due"] is not None:
        due = _at(_instant(facts["due"]), found.now)
        yield f"An earlier job of its ordering key {facts['orderingKey']!r} waits elsewhere, and is due {due}."


def _hold(hold: dict[str, Any], found: Findings, worker: str) -> str:
    by, until = hold["by"], _at(_instant(hold["until"]), found.now)
    match by:
        case "":
            return f"{worker} holds it until {until}."
        case _ if by == NOT_DUE:
            return f"It is not due before {until}."
        case _ if by == LEASED_ELSEWHERE:
            return f"Another delivery of it holds its lease, on another worker; {worker} asks again {until}."
        case _ if by == NO_LEDGER:
            return (
                f"Redis did not answer {worker}, and {found.held[worker]['queue']} does not go on without it."
            )
    whom = {"queue": "all jobs of its queue", "organization": "all jobs of its organization in this queue"}
    return f"The limit {_named(by, found)} holds {whom.get(hold['of'], 'it')} until {until}."


def _named(name: str, found: Findings) -> str:
    """Return a limit with what it allows, if that is known."""
    allowed = next((allowed_of(one) for one in found.limits if one.limit.name == name), "")
    return f"{name} ({allowed})" if allowed else name


def allowed_of(left: Left) -> str:
    """Return what a limit allows."""
    match left.limit:
        case Limit(count=count, per=per, burst=burst):
            return str(Rate(count, per, burst))
        case Concurrency(most=most):
            return f"{most} at a time"
    return ""


# -- what the others know -------------------------------------------------------------------------------


def _leased(found: Findings) -> Explanation | None:
    known = found.known
    if known is None or known.state == "waiting":
        return None
    if known.state == "done":
        return Explanation("finished", ("It has ended by the ledger; how, the store does not know yet.",))
    assert known.until is not None
    if known.until > found.now:
        silent = f" ({', '.join(found.answers.silent)} did not answer)" if found.answers.silent else ""
        sentence = (
            f"It is leased, and no worker that answered has it{silent}: whoever runs it renews the lease; if that "
            f"worker is gone, it runs elsewhere from {_at(known.until, found.now)} on."
        )
        return Explanation("leased", (sentence,), None, None)
    return None


def _retry(found: Findings) -> Explanation | None:
    job = found.job
    if job is None or job.next_retry_at is None or job.next_retry_at <= found.now:
        return None
    due = _at(job.next_retry_at, found.now)
    why = "it was published to run then"
    if job.status == Status.RETRYING:
        failure = _error(job) or job.reason or "no reason was told"
        why = f"attempt {job.attempt} of {job.max_attempts} failed: {failure}"
    elif job.snoozes:
        why = f"it was snoozed: {job.reason or 'no reason was told'}"
    return Explanation(
        "retry", (f"It waits in a retry topic and is due {due}, for {why}.",), None, job.next_retry_at
    )


def _unread(found: Findings) -> Explanation | None:
    place = found.place
    if place is None or found.job is None:
        return None
    queue = QUEUES[found.job.queue_name]
    for worker, answer in found.answers.by_worker.items():
        if "partition" in answer:
            return _before(found, worker, answer["queue"], place.offset - answer["partition"]["next"])
    if not any(name.startswith(f"{queue.worker}/") for name in found.answers.by_worker):
        sentence = f"No {queue.worker} worker lives or answers, so nobody reads {place.topic}."
    else:
        sentence = (
            f"It lies in partition {place.partition} of {place.topic}, which no worker that answered has: a rebalance "
            "goes on, or a worker is gone and its session has not run out."
        )
    return Explanation("unread", (sentence,))


def _before(found: Findings, worker: str, queue: dict[str, Any], unread: int) -> Explanation:
    place = found.place
    assert place is not None
    where = f"partition {place.partition} of {place.topic}, which {worker} reads"
    if unread < 0:
        others = f", as {queue['skipped']} of its organization are" if queue["skipped"] else ""
        sentence = (
            f"Its record in {where}, was read, and it is not in the window: it was skipped{others}, for its "
            "organization has its share, and is read back in its turn, or it has stepped aside into a retry topic and "
            "comes back."
        )
        return Explanation("aside", (sentence, *_queue_holds(found, worker, queue)), worker)
    seconds = unread * queue["secondsPerJob"]
    starts_at = found.now + timedelta(seconds=seconds)
    full = f"; its window is full with {queue['records']} records" if queue["full"] else ""
    sentences = [f"It has not been read yet: about {unread} records lie before it in {where}{full}."]
    if not found.pauses:
        sentences.append(
            f"At the pace of the queue, a job every {_span(timedelta(seconds=queue['secondsPerJob']))}, it starts "
            f"about {_at(starts_at, found.now)}, if all of them run."
        )
    return Explanation("unread", (*sentences, *_queue_holds(found, worker, queue)), worker, starts_at)


def _queue_holds(found: Findings, worker: str, queue: dict[str, Any]) -> Iterator[str]:
    for hold in queue["holds"]:
        if ":" in hold["by"]:
            whom = "its queue" if hold["of"] == "queue" else "its organization"
            until = _at(_instant(hold["until"]), found.now)
            yield f"The limit {_named(hold['by'], found)} holds {whom} on {worker} until {until}."
        elif hold["by"] == NO_LEDGER:
            yield f"Redis did not answer {worker}, and {queue['name']} does not go on without it."


def _left_over(found: Findings) -> Explanation:
    job = found.job
    if job is not None and job.status == Status.RUNNING:
        sentence = (
            f"The store has it as running on {job.worker_id}, but nobody holds a lease on it: that worker is gone, or "
            "has just ended it. If it is gone, the job runs again when its record is read again."
        )
    elif found.known is not None:
        sentence = (
            "By the ledger it waits for its next delivery: its record is in a retry topic, or not read yet."
        )
    else:
        sentence = "It was published, and where its record is cannot be told."
    return Explanation("unknown", (sentence,))


def _besides(found: Findings, placed: Explanation) -> Iterator[str]:
    for pause in found.pauses:
        until = f" until {pause.until:%Y-%m-%d %H:%M:%S} UTC" if pause.until else ""
        why = f": {pause.reason}" if pause.reason else ""
        yield f"{pause.by} has paused {pause.scope}{until}{why}."
    if found.kills and placed.where not in _FARTHEST:
        switches = "; ".join(f"{kill.id}, {kill.selector}" for kill in found.kills)
        yield f"It is a dead letter as soon as a worker meets it, if a kill switch matches it: {switches}."
    if found.cancelled and placed.where != "cancelling":
        yield "It is cancelled, and ends as soon as a worker meets it."
    job_type = found.job.job_type if found.job else next(iter(found.held.values()), {}).get("jobType")
    for worker, answer in found.answers.by_worker.items():
        if job_type in answer.get("queue", {}).get("outages", ()) and placed.where != "running":
            yield f"{worker} puts off jobs of {job_type}, or some of them, for what they call is not available."
    if found.known is not None and found.known.crashes:
        yield f"{found.known.crashes} workers ended while they ran it."
    if found.answers.silent:
        yield f"Not answered by {', '.join(found.answers.silent)}: what only they know is missing."


# -- words ----------------------------------------------------------------------------------------------


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _at(instant: datetime | None, now: datetime) -> str:
    if instant is None:
        return "at an unknown time"
    if instant <= now:
        return "now"
    return f"{instant:%Y-%m-%d %H:%M:%S}Z (in {_span(instant - now)})"


def _span(duration: timedelta) -> str:
    seconds = duration.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s"
