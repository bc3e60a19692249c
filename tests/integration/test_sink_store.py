"""The database merges rows by the same rule as the fold, and refuses what breaks its invariants."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

import devstack
from tests.integration.lifecycle import (
    comparable,
    events,
    expected_rows,
    lives,
    migrated_database,
    record,
    stored_rows,
)
from tests.unit.test_fold import events_of_one_job
from tracking.database import refuses_the_data
from tracking.events import Event, clean
from tracking.fold import fold
from tracking.store import Store

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def tables(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        yield engine


@pytest.fixture
def store(tables: Engine) -> Store:
    with tables.begin() as connection:
        connection.execute(text("TRUNCATE job_executions, lifecycle_events, sink_positions"))
    return Store(tables)


def storable(event: Event) -> Event:
    """Return the event as reading would have cleaned it."""
    error = event.error and replace(event.error, message=clean(event.error.message))
    return replace(event, reason=event.reason and clean(event.reason), error=error)


def batches(told: list[Event], data: DataObject) -> list[list[Event]]:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(told)), max_size=5)) | {0, len(told)})
    return [told[start:end] for start, end in pairwise(cuts)]


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(told=events_of_one_job(), data=st.data())
def test_batches_in_any_order_and_twice_make_the_row_of_all_at_once(
    store: Store, told: list[Event], data: DataObject
) -> None:
    told = [storable(one) for one in told]
    with store.database.begin() as connection:
        connection.execute(text("TRUNCATE job_executions, lifecycle_events"))
    repeated = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(told), max_size=4))))
    for batch in batches(list(repeated), data):
        store.commit(batch, {}, {})
    assert stored_rows(store.database) == [comparable(row) for row in fold(told)]


def test_many_lives_in_small_batches(store: Store) -> None:
    told = lives(100, seed=21)
    parsed = events(told)
    for start in range(0, len(parsed), 7):
        store.commit(parsed[start : start + 7], {}, {})
    assert stored_rows(store.database) == expected_rows(told)


def test_repeating_a_batch_writes_nothing(store: Store) -> None:
    parsed = events(lives(20, seed=22))
    store.commit(parsed, {}, {})
    versions = text(
        "SELECT xmin::text || ctid::text FROM job_executions"
        " UNION SELECT xmin::text || ctid::text FROM lifecycle_events"
    )
    with store.database.connect() as connection:
        before = set(connection.execute(versions).scalars())
    store.commit(parsed[::-1], {}, {})
    with store.database.connect() as connection:
        assert set(connection.execute(versions).scalars()) == before


@pytest.mark.parametrize(
    "facts",
    [
        {"attempt": 0}, {"maxAttempts": 0}, {"snoozes": -1}, {"organizationId": ""}, {"jobId": ""},
        {"progress": 2.0}, {"eventId": "none"},
    ],
)  # fmt: skip
def test_what_breaks_an_invariant_is_refused_with_its_batch(store: Store, facts: dict[str, object]) -> None:
    good = record("queued", "good")
    with pytest.raises(DBAPIError) as refused:
        store.commit(events([good, record("progressed", "bad") | facts]), {}, {})
    assert refuses_the_data(refused.value)
    assert stored_rows(store.database) == []
    # What customers sent stays out of the errors, and so of the logs.
    assert "parameters" in str(refused.value)
    assert "document.ocr" not in str(refused.value.statement)


def test_rollups_count_what_the_executions_say(store: Store) -> None:
    told = lives(80, seed=23)
    store.commit(events(told), {}, {})
    store.commit(events(told[::-2]), {}, {})
    with store.database.connect() as connection:
        counted = {
            (row.organization_id, row.status): (row.jobs, row.attempts)
            for row in connection.execute(
                text(
                    "SELECT organization_id, status, sum(jobs)::int AS jobs, sum(attempts)::int AS attempts"
                    " FROM rollups GROUP BY 1, 2"
                )
            )
        }
    expected: dict[tuple[str, str], tuple[int, int]] = {}
    for row in expected_rows(told):
        jobs, attempts = expected.get((row["organization_id"], row["status"]), (0, 0))
        expected[row["organization_id"], row["status"]] = jobs + 1, attempts + row["attempt"]
    assert counted == expected
