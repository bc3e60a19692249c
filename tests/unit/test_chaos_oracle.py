"""The oracle objects to a history that violates an invariant, and to none that does not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from streams.offset_map import encode
from tests.chaos.history import (
    Carried,
    Commit,
    Execution,
    History,
    Incident,
    Memory,
    Published,
    Told,
)
from tests.chaos.oracle import Limits, judge
from tests.chaos.verdict import Verdict

TOPIC = "jobs.webhooks"
ROW = json.dumps({"job_id": "a", "status": "completed"})


def commit(at: float, position: int, *, topic: str = TOPIC, metadata: str = "") -> Commit:
    return Commit(at, topic, 0, position, metadata)


def execution(job: str, started: float, ended: float | None, *, pid: int = 1, attempt: int = 1) -> Execution:
    how = None if ended is None else "end"
    return Execution(f"{job}{started}{pid}", job, f"org-{job}", attempt, pid, started, ended, how)


def told(job: str, kind: str, written: float, *, attempt: int = 1, worker: str = "w-1") -> Told:
    return Told(job, kind, attempt, 0, "", written, worker, written)


def record(
    job: str, offset: int, written: float, *, topic: str = TOPIC, attempt: int = 1, origin: str = ""
) -> Carried:
    return Carried(topic, 0, offset, written, job, attempt, 0, origin)


def healthy() -> History:
    """Return what is known of four jobs: a completes, b is retried first, c is dead, d is run again after a kill."""
    return History(
        published=[Published(job, "org", job, 0.5, "dead" if job == "c" else "completed") for job in "abcd"],
        executions=[
            execution("a", 1.0, 1.2),
            replace(execution("b", 1.0, 1.3), how="failed"),
            execution("b", 3.0, 3.2, attempt=2),
            replace(execution("c", 1.0, 1.4), how="failed"),
            execution("d", 1.8, None, pid=1),
            execution("d", 9.0, 9.5, pid=2),
        ],
        effects=["org-a", "org-b", "org-d"],
        told=[
            *(told(job, "queued", 0.5, worker="") for job in "abcd"),
            told("a", "completed", 1.2),
            told("b", "retried", 1.3),
            told("b", "completed", 3.2, attempt=2),
            told("c", "dead", 1.4),
            told("d", "started", 1.9),
            told("d", "started", 9.1, worker="w-2"),
            told("d", "completed", 9.5, worker="w-2"),
        ],
        carried=[
            *(record(job, offset, 0.5) for offset, job in enumerate("abcd")),
            record("b", 0, 1.3, topic="jobs.retry.1s", attempt=2, origin=f"{TOPIC}/0/1"),
            record("b", 4, 2.4, attempt=2, origin=f"{TOPIC}/0/1"),
            record("c", 0, 1.4, topic=f"{TOPIC}.dlt", origin=f"{TOPIC}/0/2"),
        ],
        incidents=[Incident("killed", 2.5, 2.6, 1)],
        commits=[
            *(commit(1.5 + number / 100, 3) for number in range(20)),
            commit(9.6, 5),
        ],
        memory=[Memory(2, number / 2, 80.0) for number in range(60)],
        stored=[ROW],
        folded=[ROW],
        rebuilt=[ROW],
        healed_at=5.0,
        drained_after=5.0,
    )


def objections(history: History) -> dict[str, Verdict]:
    return {one.invariant: one for one in judge(history, Limits()) if not one.holds}


def test_a_healthy_history_holds_in_every_respect() -> None:
    assert objections(healthy()) == {}


def lost(history: History) -> None:
    history.told = [one for one in history.told if (one.job_id, one.kind) != ("a", "completed")]


def two_ends(history: History) -> None:
    history.told.append(told("a", "dead", 1.3))


def wrong_end(history: History) -> None:
    history.published[0] = replace(history.published[0], end="dead")


def no_letter(history: History) -> None:
    history.carried.pop()


def no_effect(history: History) -> None:
    history.effects.remove("org-a")


def effect_twice(history: History) -> None:
    history.effects.append("org-a")


def effect_of_the_dead(history: History) -> None:
    history.effects.append("org-c")


def run_without_reason(history: History) -> None:
    history.executions.append(execution("a", 4.0, 4.2))


def run_long_after_it_ended(history: History) -> None:
    history.executions[0] = replace(history.executions[0], started=0.6, ended=0.9)
    history.executions.append(execution("a", 4.0, 4.2, pid=2))


def run_twice_for_one_kill(history: History) -> None:
    history.executions.append(execution("d", 12.0, 12.5, pid=2))


def run_twice_for_one_retry(history: History) -> None:
    history.executions.append(execution("b", 4.0, 4.2, attempt=2, pid=2))


def run_after_the_ledger_is_flushed_unsaid(history: History) -> None:
    history.incidents.append(Incident("redis", 1.0, 4.0, None, repeats=False))
    history.executions.append(execution("a", 4.0, 4.2, pid=2))


def run_again_though_it_ended_while_its_worker_left(history: History) -> None:
    history.incidents.append(Incident("left", 1.1, 2.0, 1))
    history.executions.append(execution("a", 4.0, 4.2, pid=2))


def at_once(history: History) -> None:
    history.executions[-1] = replace(history.executions[-1], started=2.05)


def early_position(history: History) -> None:
    history.commits[0] = commit(1.1, 1)


def position_beyond_what_runs(history: History) -> None:
    history.commits.insert(-1, commit(9.0, 4))


def position_before_the_retry_is_written(history: History) -> None:
    history.commits[0] = commit(1.25, 2)


def retry_position_before_it_is_forwarded(history: History) -> None:
    history.commits.insert(-1, commit(2.0, 1, topic="jobs.retry.1s"))


def beyond_the_position_what_runs_is_covered(history: History) -> None:
    history.commits.insert(-1, commit(9.0, 3, metadata=encode(3, 0, [(3, 4)])))


def position_goes_back(history: History) -> None:
    history.commits.append(commit(9.7, 3))


def nobody_committed(history: History) -> None:
    history.commits.clear()


def runs_when_completed(history: History) -> None:
    history.told.append(told("a", "started", 2.0, worker="w-2"))


def ends_again_without_reason(history: History) -> None:
    history.told.append(told("c", "dead", 9.0, worker="w-2"))


def other_rows(history: History) -> None:
    history.folded = [ROW.replace("completed", "dead")]


def other_rows_when_rebuilt(history: History) -> None:
    history.rebuilt = []


def empty_store(history: History) -> None:
    history.stored = history.folded = history.rebuilt = []


def grows(history: History) -> None:
    history.memory = [Memory(2, number / 2, 1.19 * number) for number in range(100)]


def grows_beyond_its_share(history: History) -> None:
    history.memory[30] = Memory(2, 15.0, 121.0)


def never_healed(history: History) -> None:
    history.healed_at = None


def not_drained(history: History) -> None:
    history.drained_after = None


def drained_late(history: History) -> None:
    history.drained_after = 61.0


def slow_after_the_heal(history: History) -> None:
    """Give it 20 ends a second before, and one every 25 s after."""
    history.incidents, history.healed_at = [Incident("kafka", 10.0, 11.0, repeats=False)], 11.0
    history.published += [
        Published(f"j{number}", "org", f"j{number}", number / 10, None) for number in range(200)
    ]
    history.told += [told(f"j{number}", "completed", number / 20) for number in range(150)]
    history.told += [told(f"j{150 + number}", "completed", 40.0 + number * 5) for number in range(50)]


def leak(history: History) -> None:
    history.leaks.append("sink.log")


VIOLATIONS: list[tuple[str, Callable[[History], None]]] = [
    ("no loss", lost),
    ("no loss", two_ends),
    ("no loss", wrong_end),
    ("no loss", no_letter),
    ("effect once", no_effect),
    ("effect once", effect_twice),
    ("effect once", effect_of_the_dead),
    ("executions", run_without_reason),
    ("executions", run_long_after_it_ended),
    ("executions", run_twice_for_one_kill),
    ("executions", run_twice_for_one_retry),
    ("executions", run_after_the_ledger_is_flushed_unsaid),
    ("executions", run_again_though_it_ended_while_its_worker_left),
    ("one at a time", at_once),
    ("positions", early_position),
    ("positions", position_beyond_what_runs),
    ("positions", position_before_the_retry_is_written),
    ("positions", retry_position_before_it_is_forwarded),
    ("positions", beyond_the_position_what_runs_is_covered),
    ("positions", position_goes_back),
    ("positions", nobody_committed),
    ("moves", runs_when_completed),
    ("moves", ends_again_without_reason),
    ("tracking", other_rows),
    ("tracking", other_rows_when_rebuilt),
    ("tracking", empty_store),
    ("memory", grows),
    ("memory", grows_beyond_its_share),
    ("recovery", never_healed),
    ("recovery", not_drained),
    ("recovery", drained_late),
    ("recovery", slow_after_the_heal),
    ("secrets", leak),
]


@pytest.mark.parametrize(("invariant", "violate"), VIOLATIONS, ids=[one.__name__ for _, one in VIOLATIONS])
def test_a_violation_is_objected_to(invariant: str, violate: Callable[[History], None]) -> None:
    history = healthy()
    violate(history)
    found = objections(history)
    assert invariant in found, found


def test_every_invariant_is_tried() -> None:
    assert {name for name, _ in VIOLATIONS} == {one.invariant for one in judge(healthy(), Limits())}


def test_an_objection_names_the_job_and_tells_its_story_in_the_order_of_time() -> None:
    history = healthy()
    history.executions.append(execution("d", 12.0, 12.5, pid=3))
    verdict = objections(history)["executions"]
    assert "attempt 1 of d on 3" in verdict.violation
    assert [line.split(maxsplit=1)[1] for line in verdict.story] == [
        "event queued, attempt 1",
        "published for org, must be completed",
        f"record {TOPIC}/0/3, attempt 1",
        "attempt 1 starts on 1",
        "event started, attempt 1 by w-1",
        "-- killed 1 for 0.1 s",
        "attempt 1 starts on 2",
        "event started, attempt 1 by w-2",
        "attempt 1 on 2: end",
        "event completed, attempt 1 by w-2",
        "attempt 1 starts on 3",
        "attempt 1 on 3: end",
    ]


def test_what_a_frozen_worker_overlaps_is_excused_and_what_a_left_one_hands_on_too() -> None:
    frozen = healthy()
    frozen.incidents = [Incident("frozen", 1.9, 10.0, 1)]
    frozen.executions[-2] = replace(frozen.executions[-2], ended=10.1, how="cancelled")
    assert objections(frozen) == {}
    left = healthy()
    left.incidents = [Incident("left", 1.9, 2.5, 1)]
    left.executions[-2] = replace(left.executions[-2], ended=2.4, how="cancelled")
    assert objections(left) == {}


def test_what_its_worker_told_just_before_it_died_may_be_run_again() -> None:
    history = healthy()
    history.told[4] = told("a", "completed", 2.3)
    history.commits = [replace(one, at=one.at + 1) for one in history.commits]
    history.executions.append(execution("a", 8.0, 8.2, pid=2))
    history.told.append(told("a", "completed", 8.2, worker="w-2"))
    assert objections(history) == {}


def test_a_watchdog_copy_may_run_again_once_the_ledger_is_lost_and_nothing_else_that_ended_long_before() -> (
    None
):
    history = healthy()
    history.incidents.append(Incident("redis flushed", 4.0, 4.5))
    history.executions.append(execution("a", 5.0, 5.2))
    assert "executions" in objections(history)
    copied = healthy()
    copied.incidents, copied.executions = history.incidents, history.executions
    copied.carried.append(replace(record("a", 5, 4.2), reason="it runs for long"))
    assert "executions" not in objections(copied)


def test_an_end_told_twice_by_a_crash_in_between_is_no_move() -> None:
    history = healthy()
    history.incidents.append(Incident("ended with -9", 1.25, 1.3, 1))
    history.executions.append(execution("a", 4.0, 4.2, pid=2))
    history.told.append(told("a", "completed", 4.2, worker="w-2"))
    assert objections(history) == {}


def test_a_start_written_behind_the_end_of_the_same_batch_is_no_move() -> None:
    history = healthy()
    history.told.append(replace(told("a", "started", 1.2), at=1.1))
    assert objections(history) == {}


def test_the_history_is_kept_as_json_lines(tmp_path: Path) -> None:
    healthy().save(tmp_path / "history.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert sum(what == "executions" for what, _ in lines) == 6
    assert ["healed_at", 5.0] in lines


@pytest.mark.parametrize(("written", "wrong"), [(2.45, set()), (2.2, {"moves"})])
def test_only_what_a_frozen_worker_wrote_just_before_may_come_after_the_end(
    written: float, wrong: set[str]
) -> None:
    frozen = healthy()
    frozen.incidents = [Incident("frozen", 2.5, 10.0, 1)]
    frozen.executions[-2] = replace(frozen.executions[-2], ended=written, how="failed")
    frozen.told.append(told("d", "retried", written))
    assert set(objections(frozen)) == wrong
