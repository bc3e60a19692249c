"""The answers, on a small history whose every number can be checked by hand."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

import devstack
from tests.integration.lifecycle import Record, at, events, migrated_database, record, stored_events
from tracking import analytics
from tracking.analytics import Retention, Window, cleanup_old_executions
from tracking.database import AmbiguousJob, DatabaseUnavailable, InvalidCursor, SchemaOutdated, open_database
from tracking.jobs import JobFilter, get_job, list_jobs
from tracking.states import Status
from tracking.store import Store

pytestmark = pytest.mark.stack

ALL_DAY = Window(at(-3600), at(24 * 3600))


def run(kind: str, job: str, start: float, end: float, **facts: Any) -> Record:
    return record(
        kind, job, end, startedAt=at(start), workerId="w1", workerHost="host", memoryBytes=2**20, **facts,
    )  # fmt: skip


def error(message: str, fingerprint: str = "f1") -> dict[str, Any]:
    return {"kind": "TimeoutError", "message": message, "stack": "at ...", "fingerprint": fingerprint}


HISTORY = [
    # Four of acme's complete, after 1, 2, 3 and 10 s of running and 1 s of waiting.
    *(record("queued", f"ok-{seconds}", 0) for seconds in (1, 2, 3, 10)),
    *(run("completed", f"ok-{seconds}", 1, 1 + seconds) for seconds in (1, 2, 3, 10)),
    # One completes at its second attempt, one dies at its third, one is cancelled, one runs, one is queued.
    run("retried", "second", 1, 2, error=error("slow 1"), notBefore=at(10)),
    run("completed", "second", 10, 11, attempt=2),
    run("retried", "dying", 1, 2, error=error("slow 2"), notBefore=at(10)),
    run("retried", "dying", 10, 12, error=error("slow 3"), attempt=2, notBefore=at(20)),
    run("dead", "dying", 20, 23, error=error("no route", "f2"), attempt=3),
    record("cancelled", "unwanted", 4, reason="by ops"),
    record("started", "running", 5, startedAt=at(5), workerId="w2", workerHost="host"),
    record("queued", "waiting", 6, queuedAt=at(6)),
    # Another organization's job, with an id that acme has, too.
    run("dead", "ok-1", 1, 5, organizationId="globex", jobType="email.send", error=error("slow 9")),
]


@pytest.fixture(scope="module")
def history(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        Store(engine).commit(events(HISTORY), {}, {})
        yield engine


def test_job_statistics_count_by_type_and_state(history: Engine) -> None:
    found = {
        (row.job_type, row.status): row for row in analytics.get_job_statistics(history, "acme", ALL_DAY)
    }
    assert {key[1]: row.jobs for key, row in found.items()} == {
        "completed": 5, "dead": 1, "cancelled": 1, "running": 1, "queued": 1,
    }  # fmt: skip
    completed = found["document.ocr", "completed"]
    assert completed.attempts == 6
    assert completed.average_duration_ms == pytest.approx((1 + 2 + 3 + 10 + 1) * 1000 / 5)
    assert {row.job_type for row in analytics.get_job_statistics(history, None, ALL_DAY)} == {
        "document.ocr", "email.send",
    }  # fmt: skip


def test_overall_statistics_add_up(history: Engine) -> None:
    acme = analytics.get_overall_statistics(history, "acme", ALL_DAY)
    assert (acme.jobs, acme.organizations, acme.attempts, acme.retried_jobs) == (9, 1, 12, 2)
    assert acme.by_status["completed"] == 5
    assert acme.by_status["retrying"] == 0
    assert acme.success_rate == pytest.approx(5 / 7)
    assert acme.oldest_unfinished_at == at(0)
    assert acme.completed_per_minute == pytest.approx(5 / (25 * 60))
    assert analytics.get_overall_statistics(history, None, ALL_DAY).organizations == 2


def test_a_window_without_jobs_has_answers_too(history: Engine) -> None:
    empty = Window(at(90_000), at(90_001))
    overall = analytics.get_overall_statistics(history, "acme", empty)
    assert (overall.jobs, overall.success_rate, overall.average_duration_ms) == (0, None, None)
    for question in (
        analytics.get_job_statistics, analytics.get_recent_failures, analytics.get_error_analysis,
        analytics.get_performance_metrics, analytics.get_slow_jobs,
    ):  # fmt: skip
        answer: list[Any] = question(history, None, empty)
        assert answer == []


def test_a_window_holds_its_start_and_not_its_end(history: Engine) -> None:
    def queued(window: Window) -> int:
        return analytics.get_overall_statistics(history, "acme", window).jobs

    assert queued(Window(at(6), at(7))) == 1
    assert queued(Window(at(5), at(6))) == 0


def test_worker_statistics_tell_what_each_did_and_runs(history: Engine) -> None:
    w1, w2 = analytics.get_worker_statistics(history, "acme", ALL_DAY)
    assert (w1.worker_id, w1.running, w1.completed, w1.retried, w1.dead) == ("w1", 0, 5, 3, 1)
    assert w1.busy_ms == pytest.approx((1 + 2 + 3 + 10 + 1 + 1 + 1 + 2 + 3) * 1000)
    assert w1.peak_memory_bytes == 2**20
    assert w1.last_seen_at == at(23)
    assert (w2.worker_id, w2.running, w2.completed, w2.last_seen_at) == ("w2", 1, 0, at(5))
    # The running job is seen in a window that none of its events fall into.
    (only,) = analytics.get_worker_statistics(history, "acme", Window(at(90_000), at(90_001)))
    assert (only.worker_id, only.running) == ("w2", 1)


def test_recent_failures_are_the_dead_with_their_errors(history: Engine) -> None:
    (dead,) = analytics.get_recent_failures(history, "acme", ALL_DAY)
    assert (dead.job_id, dead.attempt, dead.error_message, dead.error_stack) == (
        "dying",
        3,
        "no route",
        "at ...",
    )
    everyone = analytics.get_recent_failures(history, None, ALL_DAY)
    assert [job.organization_id for job in everyone] == ["acme", "globex"]
    assert len(analytics.get_recent_failures(history, None, ALL_DAY, limit=1)) == 1


def test_error_analysis_groups_every_failed_attempt(history: Engine) -> None:
    frequent, rare = analytics.get_error_analysis(history, "acme", ALL_DAY)
    assert (frequent.fingerprint, frequent.errors, frequent.jobs, frequent.dead) == ("f1", 3, 2, 0)
    assert (frequent.first_seen_at, frequent.last_seen_at) == (at(2), at(12))
    assert (frequent.example_message, frequent.example_job_id) == ("slow 3", "dying")
    assert (rare.fingerprint, rare.errors, rare.dead) == ("f2", 1, 1)
    everyone, _ = analytics.get_error_analysis(history, None, ALL_DAY)
    assert (everyone.errors, everyone.organizations) == (4, 2)
    assert everyone.job_types == ["document.ocr", "email.send"]


def test_performance_metrics_interpolate_percentiles(history: Engine) -> None:
    (metrics,) = analytics.get_performance_metrics(history, "acme", ALL_DAY)
    assert metrics.jobs == 5
    assert metrics.duration.p50_ms == pytest.approx(2000)
    assert metrics.duration.p95_ms == pytest.approx(3000 + 0.8 * 7000)
    assert metrics.duration.max_ms == pytest.approx(10_000)
    assert metrics.queue_time.average_ms == pytest.approx(1000)


def test_slow_jobs_come_slowest_first(history: Engine) -> None:
    slow = analytics.get_slow_jobs(history, "acme", ALL_DAY, at_least=timedelta(seconds=3))
    assert [job.job_id for job in slow] == ["ok-10", "dying", "ok-3"]
    assert len(analytics.get_slow_jobs(history, None, ALL_DAY, limit=2)) == 2


def test_pages_hold_every_job_once_while_others_are_published(history: Engine) -> None:
    seen, cursor = [], None
    while True:
        page = list_jobs(history, JobFilter(), limit=3, cursor=cursor)
        seen += [(job.organization_id, job.job_id) for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 10
    assert seen[0] == ("acme", "waiting")
    with pytest.raises(InvalidCursor):
        list_jobs(history, JobFilter(), cursor="bm9uZQ==")


def test_filters_narrow_the_list(history: Engine) -> None:
    def ids(**chosen: Any) -> set[str]:
        return {job.job_id for job in list_jobs(history, JobFilter(**chosen)).jobs}

    assert ids(status=Status.DEAD) == {"dying", "ok-1"}
    assert ids(organization_id="globex") == {"ok-1"}
    assert ids(job_type="email.send", queue_name="document-processing") == {"ok-1"}
    assert ids(queue_name="emails") == set()
    assert ids(worker_id="w2") == {"running"}
    assert ids(since=at(6)) == {"waiting"}
    assert "waiting" not in ids(until=at(6))


def test_a_job_comes_with_its_events_in_order(history: Engine) -> None:
    detail = get_job(history, "dying")
    assert detail is not None
    assert detail.job.status == "dead"
    assert [(event.kind, event.attempt) for event in detail.events] == [
        ("retried", 1),
        ("retried", 2),
        ("dead", 3),
    ]
    assert get_job(history, "dying", "globex") is None
    assert get_job(history, "none") is None


def test_an_id_of_two_organizations_asks_which(history: Engine) -> None:
    with pytest.raises(AmbiguousJob, match="acme, globex each have a job ok-1"):
        get_job(history, "ok-1")
    detail = get_job(history, "ok-1", "globex")
    assert detail is not None
    assert {event.kind for event in detail.events} == {"dead"}


@pytest.fixture
def own(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        Store(engine).commit(events(HISTORY), {}, {})
        yield engine


def jobs_in(database: Engine) -> set[tuple[str, str]]:
    return {(job.organization_id, job.job_id) for job in list_jobs(database, JobFilter()).jobs}


def test_cleanup_removes_what_is_past_its_retention_and_nothing_else(own: Engine) -> None:
    retention = Retention({Status.COMPLETED: timedelta(days=1), Status.DEAD: timedelta(days=10)}, None)
    now = at(0) + timedelta(days=2)
    before = jobs_in(own)
    counted = cleanup_old_executions(own, None, retention, now=now, dry_run=True)
    assert jobs_in(own) == before
    assert cleanup_old_executions(own, None, retention, now=now, batch=2) == counted
    assert counted.jobs == 5
    assert counted.events == 4 * 2 + 2
    assert jobs_in(own) == {
        ("acme", "dying"), ("acme", "unwanted"), ("acme", "running"), ("acme", "waiting"), ("globex", "ok-1"),
    }  # fmt: skip
    assert cleanup_old_executions(own, None, retention, now=now).jobs == 0


def test_cleanup_of_events_keeps_those_of_unfinished_jobs(own: Engine) -> None:
    retention = Retention({}, timedelta(days=1))
    now = at(0) + timedelta(days=2)
    counted = cleanup_old_executions(own, None, retention, now=now, dry_run=True)
    assert cleanup_old_executions(own, None, retention, now=now, batch=3) == counted
    assert counted.jobs == 0
    assert len(stored_events(own)) == 2
    assert len(jobs_in(own)) == 10


def test_cleanup_of_one_organization_leaves_the_others_alone(own: Engine) -> None:
    retention = replace(Retention(), jobs={Status.DEAD: timedelta(0)}, events=timedelta(0))
    cleanup_old_executions(own, "globex", retention, now=at(24 * 3600))
    assert ("globex", "ok-1") not in jobs_in(own)
    assert len(jobs_in(own)) == 9
    assert len(stored_events(own)) == len(HISTORY) - 1


def test_a_database_without_tables_or_answer_is_named_in_a_sentence(database: str) -> None:
    engine = open_database(database)
    with pytest.raises(SchemaOutdated, match="run `streams db upgrade`"):
        analytics.get_slow_jobs(engine, None, ALL_DAY)
    engine.dispose()
    gone = open_database("postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(DatabaseUnavailable) as unavailable:
        analytics.get_job_statistics(gone, None, ALL_DAY)
    assert "secret" not in str(unavailable.value)
