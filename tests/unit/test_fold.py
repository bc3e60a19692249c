"""The fold: order, grouping and repetition of events change nothing, and what it says is what happened."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import pairwise
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tracking.events import KINDS, Event, Failure
from tracking.fold import REGISTERS, Row, fold, merge, queue_time_ms, row_of
from tracking.states import FINAL, INITIAL, MOVES, Status

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
REPLAYS = [None, "01960000-0000-7000-8000-000000000001", "01960000-0000-7000-8000-000000000002"]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def event(kind: str, seconds: float = 0, **facts: object) -> Event:
    known: dict[str, object] = {
        "id": f"{kind}@{seconds}",
        "kind": kind,
        "at": at(seconds),
        "job_id": "job",
        "job_type": "document.ocr",
        "queue_name": "document-processing",
        "organization_id": "acme",
        "attempt": 1,
        "max_attempts": 3,
    }
    return Event(**known | facts)  # type: ignore[arg-type]


def only(events: Sequence[Event]) -> Row:
    (row,) = fold(events)
    return row


failures = st.builds(
    Failure, st.sampled_from(["Timeout", "Bug"]), st.text(max_size=5), st.none(), st.text("ab", max_size=2)
)
moments = st.integers(0, 50).map(at)


@st.composite
def events_of_one_job(draw: st.DrawFn) -> list[Event]:
    """Any events at all, legal or not; the same id is always the same event."""
    ids = draw(st.lists(st.uuids(), unique=True, min_size=1, max_size=8))
    return [draw(_any_event(str(id))) for id in ids]


def _any_event(id: str) -> st.SearchStrategy[Event]:
    return st.builds(
        Event,
        id=st.just(id),
        kind=st.sampled_from(KINDS),
        at=moments,
        job_id=st.just("job"),
        job_type=st.sampled_from(["document.ocr", "email.send"]),
        queue_name=st.just("emails"),
        organization_id=st.just("acme"),
        attempt=st.integers(1, 3),
        max_attempts=st.integers(1, 3),
        snoozes=st.integers(0, 2),
        replay_id=st.sampled_from(REPLAYS),
        worker_id=st.sampled_from([None, "w1", "w2"]),
        worker_host=st.none(),
        queued_at=st.none() | moments,
        started_at=st.none() | moments,
        finished_at=st.none() | moments,
        not_before=st.none() | moments,
        duration_ms=st.none() | st.floats(0, 1e6),
        input=st.sampled_from([None, "{}", "[1]"]),
        output=st.sampled_from([None, "1", "2"]),
        progress=st.none() | st.floats(0, 1),
        reason=st.none() | st.text(max_size=3),
        error=st.none() | failures,
        origin=st.sampled_from([None, "jobs.emails/0/1", "jobs.emails/1/7"]),
    )


@settings(max_examples=300)
@given(events_of_one_job(), st.data())
def test_order_and_repetition_change_nothing(events: list[Event], data: DataObject) -> None:
    repeated = events + data.draw(st.lists(st.sampled_from(events), max_size=6))
    assert fold(data.draw(st.permutations(repeated))) == fold(events)


@given(events_of_one_job(), st.data())
def test_grouping_changes_nothing(events: list[Event], data: DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events)), max_size=4)) | {0, len(events)})
    batches = [events[start:end] for start, end in pairwise(cuts)]
    assert reduce(merge, [only(batch) for batch in batches]) == only(events)


@given(events_of_one_job())
def test_merging_a_row_with_itself_is_the_row(events: list[Event]) -> None:
    assert merge(only(events), only(events)) == only(events)


@given(events_of_one_job())
def test_rows_meet_the_invariants_of_the_table(events: list[Event]) -> None:
    row = only(events)
    assert (row["finished_at"] is not None) == (Status(row["status"]) in FINAL)
    assert row["queue_time_ms"] is None or row["queue_time_ms"] >= 0
    for key, columns in REGISTERS.items():
        assert row[key] or not any(row[column] is not None for column in columns), key
    if any(one.kind == "completed" for one in events):
        assert row["status"] == "completed"


# What each legal move tells of. Coming due tells nothing, so the walk makes it without an event.
TELLS = {
    (Status.QUEUED, Status.RUNNING): "started",
    (Status.QUEUED, Status.DELAYED): "snoozed",
    (Status.QUEUED, Status.DEAD): "dead",
    (Status.QUEUED, Status.CANCELLED): "cancelled",
    (Status.DELAYED, Status.CANCELLED): "cancelled",
    (Status.RETRYING, Status.CANCELLED): "cancelled",
    (Status.RUNNING, Status.RUNNING): "started",
    (Status.RUNNING, Status.DELAYED): "snoozed",
    (Status.RUNNING, Status.RETRYING): "retried",
    (Status.RUNNING, Status.COMPLETED): "completed",
    (Status.RUNNING, Status.DEAD): "dead",
    (Status.RUNNING, Status.CANCELLED): "cancelled",
    (Status.DEAD, Status.QUEUED): "replayed",
    (Status.CANCELLED, Status.QUEUED): "replayed",
}


@given(st.data())
def test_the_fold_follows_a_job_along_every_legal_walk(data: DataObject) -> None:
    state = data.draw(st.sampled_from(sorted(INITIAL - {Status.WAITING})))
    attempt, snoozes, replays = 1, 0, 0
    not_before = at(10) if state is Status.DELAYED else None
    told = [event("queued", 0, not_before=not_before)]
    assert only(told)["status"] == state
    for second in range(1, data.draw(st.integers(1, 12))):
        moves = MOVES[state]
        if not moves:
            break
        following = data.draw(st.sampled_from(sorted(moves)))
        kind = TELLS.get((state, following))
        if kind == "replayed":
            attempt, snoozes, replays = 1, 0, replays + 1
        if kind is not None:
            replay_id = str(UUID(int=(7 << 76) + replays)) if replays else None
            told.append(event(kind, second, attempt=attempt, snoozes=snoozes, replay_id=replay_id))
            assert only(told)["status"] == following
        # Counters are those of the delivery an event is about; the next delivery counts on.
        attempt += following is Status.RETRYING
        snoozes += kind == "snoozed"
        state = following


def test_first_known_facts_stay_and_last_ones_win() -> None:
    row = only(
        [
            event("queued", 0, queued_at=at(0), input='{"page": 1}'),
            event("started", 2, queued_at=at(0), started_at=at(2), worker_id="w1"),
            event("progressed", 3, queued_at=at(0), started_at=at(2), progress=0.5, worker_id="w1"),
            event(
                "retried", 4, queued_at=at(0), started_at=at(2), finished_at=at(4), worker_id="w1",
                duration_ms=2000.0, not_before=at(9), error=Failure("Timeout", "slow", None, "f1"),
            ),
            event("started", 10, queued_at=at(0), attempt=2, started_at=at(10), worker_id="w2", not_before=at(9)),
        ]
    )  # fmt: skip
    assert (row["status"], row["attempt"], row["next_retry_at"]) == ("running", 2, None)
    assert (row["queued_at"], row["started_at"], row["worker_id"]) == (at(0), at(10), "w2")
    assert row["duration_ms"] is None
    assert row["error_kind"] == "Timeout"
    assert row["progress"] == 0.5
    assert row["input"] == '{"page": 1}'
    assert row["queue_time_ms"] == 1000.0


def test_a_retried_job_says_when_it_runs_again() -> None:
    row = only([event("started", 1), event("retried", 2, not_before=at(60))])
    assert (row["status"], row["next_retry_at"], row["finished_at"]) == ("retrying", at(60), None)


def test_a_queued_job_is_delayed_only_while_its_time_lies_ahead() -> None:
    assert only([event("queued", 0, not_before=at(5))])["status"] == "delayed"
    assert only([event("queued", 5, not_before=at(5))])["status"] == "queued"


def test_a_replay_supersedes_the_end_of_an_earlier_one_and_not_a_later_one() -> None:
    dead = event("dead", 10, attempt=3, id="a")
    first = event("replayed", 20, replay_id=REPLAYS[1], id="b")
    died_again = event("dead", 30, attempt=2, replay_id=REPLAYS[1], id="c")
    second = event("replayed", 40, replay_id=REPLAYS[2], id="d")
    assert only([dead, first])["status"] == "queued"
    assert only([died_again, dead, first])["status"] == "dead"
    assert only([second, died_again, dead, first])["status"] == "queued"
    # A straggler of the first life says nothing about the second.
    assert only([second, event("started", 99, attempt=3, id="e")])["status"] == "queued"


def test_nothing_unmakes_a_completed_job() -> None:
    done = event("completed", 10, output="1")
    later = event("replayed", 20, replay_id=REPLAYS[1])
    row = only([done, later, event("dead", 30, attempt=1, replay_id=REPLAYS[1], id="z")])
    assert (row["status"], row["output"], row["finished_at"]) == ("completed", "1", at(10))


def test_an_end_stands_against_a_straggler_with_a_higher_attempt() -> None:
    assert only([event("cancelled", 5), event("started", 3, attempt=2)])["status"] == "cancelled"


def test_a_cancelled_job_that_never_ran_has_an_end_and_no_run() -> None:
    row = only([event("queued"), event("cancelled", 5, reason="by ops")])
    assert (row["finished_at"], row["started_at"], row["reason"]) == (at(5), None, "by ops")


def test_jobs_of_two_organizations_with_one_id_are_two_rows() -> None:
    rows = fold([event("queued"), event("dead", 1, organization_id="globex")])
    assert [(row["organization_id"], row["status"]) for row in rows] == [
        ("acme", "queued"),
        ("globex", "dead"),
    ]


def test_queue_time_is_the_time_it_could_have_run() -> None:
    run = {"queued_at": at(0), "started_at": at(8)}
    assert queue_time_ms(event("completed", 9, **run)) == 8000
    assert queue_time_ms(event("completed", 9, not_before=at(5), **run)) == 3000
    # The due time of a retried event is the next attempt's; of a second attempt the publish says nothing.
    assert queue_time_ms(event("retried", 9, not_before=at(60), **run)) == 8000
    assert queue_time_ms(event("completed", 9, attempt=2, **run)) is None
    # Clocks of two machines differ.
    assert queue_time_ms(event("completed", 9, queued_at=at(8), started_at=at(7))) == 0


def test_every_kind_has_a_row() -> None:
    assert {row_of(event(kind))["status"] for kind in KINDS} == set(Status) - {Status.WAITING}
