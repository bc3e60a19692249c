"""Why a job ran again, and whether it may have: what a retry or an incident explains."""

from tests.chaos.history import Execution, History, Incident, Told
from tests.chaos.verdict import Verdict, against

SETTLE_SECONDS = 0.5
"""What was told so shortly before its worker died may not be settled yet, and run again."""

LEDGER_LOST = ("redis flushed", "redis restarted")
"""After these nothing knows that a job has ended whose watchdog copy is still on its way."""

COPIED = "it runs for long"
"""The reason that a watchdog copy carries."""


def executions_explained(history: History) -> Verdict:
    """A job runs once, and again only for a reason: it was retried or snoozed, or its worker was hurt meanwhile."""
    name = "executions"
    extra = 0
    unexplained: list[tuple[str, Execution]] = []
    for job_id, runs in history.runs.items():
        excuses = list(runs[:1])
        for run in runs[1:]:
            excuse = next((one for one in excuses if _retried(history, one, run)), None)
            if excuse is None:
                excuse = next((one for one in excuses if _interrupted(history, one, run)), None)
                extra += 1
            if excuse is None:
                unexplained.append((job_id, run))
            else:
                excuses.remove(excuse)  # each run is a reason for one other
            excuses.append(run)
    bound = sum(_in_flight(history, incident) for incident in history.incidents if incident.repeats)
    figure = f"{len(history.executions)} runs, {extra} repeated of {bound} in flight at faults"
    if unexplained:
        job_id, run = unexplained[0]
        wrong = (
            f"{len(unexplained)} runs have no reason, such as attempt {run.attempt} of {job_id} on {run.pid}"
        )
        return against(history, name, figure, wrong, job_id)
    if extra > bound:
        return Verdict(name, figure, f"{extra} runs were repeated where {bound} jobs were in flight")
    return Verdict(name, figure)


def _retried(history: History, earlier: Execution, later: Execution) -> bool:
    return any(
        event.kind in ("retried", "snoozed")
        and event.attempt == earlier.attempt
        and later.attempt == earlier.attempt + (event.kind == "retried")
        and earlier.started <= event.written + 0.01 <= later.started + 0.05
        for event in history.events.get(later.job_id, [])
    ) or any(
        event.kind == "replayed" and earlier.started <= event.written <= later.started
        for event in history.events.get(later.job_id, [])
    )


def _interrupted(history: History, earlier: Execution, later: Execution) -> bool:
    return any(
        incident.begin <= later.started and in_flight_at(history, earlier, incident)
        for incident in history.incidents
    )


def in_flight_at(history: History, run: Execution, incident: Incident) -> bool:
    """Return whether an incident may make a run happen again."""
    if not incident.repeats or incident.pid not in (None, run.pid) or run.started > incident.end:
        return False
    if incident.what == "left":
        # What ends while its worker leaves is settled; what does not is handed on.
        return run.ended is None or (run.how == "cancelled" and run.ended >= incident.begin)
    if incident.what in LEDGER_LOST and any(
        record.reason == COPIED and run.started <= record.written and record.written >= incident.begin
        for record in history.records.get(run.job_id, [])
    ):
        return True
    return _told_at(history, run) >= incident.begin - SETTLE_SECONDS


def _told_at(history: History, run: Execution) -> float:
    """Return when its worker told what came of a run; never, when it did not."""
    if run.ended is None:
        return float("inf")
    return min(
        (
            event.written
            for event in history.events.get(run.job_id, [])
            if event.kind not in ("queued", "started", "progressed")
            and event.worker.endswith(f"-{run.pid}")
            and event.written >= run.ended - 0.01
        ),
        default=float("inf"),
    )


def _in_flight(history: History, incident: Incident) -> int:
    return sum(in_flight_at(history, run, incident) for run in history.executions)


def one_at_a_time(history: History) -> Verdict:
    """No two workers run one job at the same time, unless one was frozen or the ledger was away."""
    name = "one at a time"
    overlaps: list[tuple[str, Execution, Execution]] = []
    excused = 0
    for job_id, runs in history.runs.items():
        for index, run in enumerate(runs):
            over = _over_at(history, run)
            for later in runs[index + 1 :]:
                if later.started >= over:
                    continue
                if any(_may_overlap(history, incident, run, later) for incident in history.incidents):
                    excused += 1
                else:
                    overlaps.append((job_id, run, later))
    figure = f"{len(overlaps) + excused} overlaps"
    if overlaps:
        job_id, run, later = overlaps[0]
        return against(
            history, name, figure, f"{job_id} runs on {run.pid} and on {later.pid} at once", job_id
        )
    return Verdict(name, figure + (", all of frozen workers or without a ledger" if excused else ""))


def _over_at(history: History, run: Execution) -> float:
    """Return when a run was over: it came back, its worker died, or its attempt was told to have ended."""
    if run.ended is not None:
        return run.ended
    deaths = [
        incident.end
        for incident in history.incidents
        if incident.pid == run.pid and incident.what != "frozen" and incident.end >= run.started
    ]
    told = [
        event.written
        for event in history.events.get(run.job_id, [])
        if event.kind in ("retried", "dead") and event.attempt == run.attempt and event.written >= run.started
    ]
    return min([*deaths, *told], default=float("inf"))


def _may_overlap(history: History, incident: Incident, run: Execution, later: Execution) -> bool:
    alive = incident.what == "frozen" or incident.pid is None
    return alive and incident.begin <= later.started and in_flight_at(history, run, incident)


SENT_WITHIN_SECONDS = 0.1
"""So long after it was written an event may not have left its worker yet, when that one is frozen or killed."""


def told_again(history: History, event: Told) -> bool:
    """Return whether an incident explains that an event comes after its like: its run was in flight then."""
    return any(
        incident.begin <= event.written + SENT_WITHIN_SECONDS and in_flight_at(history, run, incident)
        for run in history.runs.get(event.job_id, [])
        for incident in history.incidents
    )
