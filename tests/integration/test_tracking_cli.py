"""What operators type to see what happened: the real command, a real database."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine

import devstack
from cli.main import main
from streams.queues import LIFECYCLE_TOPIC
from tests.integration.lifecycle import Topics, dump, events, migrated_database, record, wait_until
from tracking.database import open_database
from tracking.jobs import get_job
from tracking.store import Store

pytestmark = pytest.mark.stack

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def store(stack: devstack.Stack) -> Iterator[Engine]:
    with migrated_database(stack.postgres) as engine:
        run: dict[str, Any] = {
            "at": NOW,
            "queuedAt": NOW - timedelta(seconds=9),
            "startedAt": NOW - timedelta(seconds=5),
        }
        end = run | {"workerId": "w1", "workerHost": "h"}
        failure = {
            "kind": "ValueError",
            "message": "[red]no\x1b[31m page\nmore",
            "stack": "at x",
            "fingerprint": "f",
        }
        told = [
            record("completed", "job-1", input='{"page": 1}', **end),
            record("dead", "job-2", error=failure, **end),
            record("dead", "job-2", organizationId="globex", error=failure, **end),
        ]
        Store(engine).commit(events(told), {}, {})
        yield engine


def streams(store: Engine | str, *arguments: str) -> Result:
    url = store if isinstance(store, str) else store.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, arguments, env={"DATABASE_URL": url})


def rows(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_stats_show_counts_and_durations(store: Engine) -> None:
    shown = streams(store, "stats")
    assert shown.exit_code == 0
    assert "3 jobs of 2 organizations: 1 completed, 2 dead; 33.3% of the finished completed" in shown.stdout
    (document,) = rows(streams(store, "stats", "--org", "acme", "--json"))
    assert document["overall"]["jobs"] == 2  # type: ignore[index]


@pytest.mark.parametrize("command", ["failures", "errors", "slow", "workers", "jobs list"])
def test_every_question_has_a_table_json_lines_and_an_answer_for_nothing(store: Engine, command: str) -> None:
    words = command.split()
    table = streams(store, *words)
    assert table.exit_code == 0, table.output
    assert "┃" in table.stdout
    assert "\x1b" not in table.stdout
    assert rows(streams(store, *words, "--json", "--since", "1h"))
    nothing = streams(store, *words, "--org", "nobody")
    assert nothing.exit_code == 0
    assert nothing.stdout.startswith("No ")
    assert nothing.stdout.count("\n") == 1
    assert rows(streams(store, *words, "--org", "nobody", "--json")) == []


def test_rows_are_those_of_the_organization(store: Engine) -> None:
    assert {row["organization_id"] for row in rows(streams(store, "failures", "--json"))} == {
        "acme",
        "globex",
    }
    (failure,) = rows(streams(store, "failures", "--org", "globex", "--json"))
    assert failure["organization_id"] == "globex"
    assert failure["input"] is None


def test_what_customers_sent_is_shown_not_obeyed(store: Engine) -> None:
    assert "[red]no�[31m page" in streams(store, "failures").stdout


def test_pages_of_the_list_follow_each_other(store: Engine) -> None:
    first = streams(store, "jobs", "list", "--limit", "2", "--json")
    cursor = first.stderr.split("--cursor ")[1].strip()
    second = streams(store, "jobs", "list", "--limit", "2", "--json", "--cursor", cursor)
    assert len(rows(first)) + len(rows(second)) == 3
    assert not second.stderr
    wrong = streams(store, "jobs", "list", "--cursor", "x")
    assert (wrong.exit_code, wrong.stderr) == (1, "Error: the cursor is none that an earlier page gave out\n")


def test_show_tells_everything_about_one_job(store: Engine) -> None:
    shown = streams(store, "jobs", "show", "job-1")
    assert shown.exit_code == 0
    assert '{"page": 1}' in shown.stdout
    (document,) = rows(streams(store, "jobs", "show", "job-2", "--org", "acme", "--json"))
    assert [event["kind"] for event in document["events"]] == ["dead"]  # type: ignore[attr-defined]
    assert streams(store, "jobs", "show", "job-2").stderr == (
        "Error: acme, globex each have a job job-2: say of which organization\n"
    )
    assert streams(store, "jobs", "show", "no").stderr == "Error: there is no job no\n"


def test_upgrade_current_and_cleanup(database: str) -> None:
    before = streams(database, "db", "current")
    assert before.exit_code == 1
    assert "run `streams db upgrade`" in before.stderr
    assert "run `streams db upgrade`" in streams(database, "failures").stderr
    assert streams(database, "db", "upgrade").exit_code == 0
    assert streams(database, "db", "current").exit_code == 0
    cleaned = streams(database, "db", "cleanup", "--completed", "1d", "--dry-run")
    assert cleaned.stdout == "Would delete 0 jobs and 0 events.\n"


def test_errors_are_one_sentence_without_the_password() -> None:
    for url in ("postgresql://nobody:secret@127.0.0.1:1/none", "mysql://x:secret@y/z", "secret"):
        refused = streams(url, "stats")
        assert refused.exit_code == 1
        assert refused.stderr.count("\n") == 1
        assert "secret" not in refused.stderr


def test_the_sink_refuses_tables_of_another_version(stack: devstack.Stack, database: str) -> None:
    sink = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "tracking"],
        env={**os.environ, "DATABASE_URL": database, "KAFKA_BOOTSTRAP_SERVERS": stack.kafka},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert sink.returncode == 1
    assert "run `streams db upgrade`" in sink.stderr
    assert "Traceback" not in sink.stderr


def test_the_sink_and_its_rebuild_as_processes(stack: devstack.Stack, database: str) -> None:
    environment = {**os.environ, "DATABASE_URL": database, "KAFKA_BOOTSTRAP_SERVERS": stack.kafka}
    command = [sys.executable, "-c", "from cli.main import main; main()"]

    def streams(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    streams("topics", "ensure")
    streams("db", "upgrade")
    job = uuid4().hex
    Topics({"bootstrap.servers": stack.kafka}, LIFECYCLE_TOPIC, 0).publish([record("queued", job)])
    engine = open_database(database)
    sink = subprocess.Popen([*command, "tracking"], env=environment)
    try:
        wait_until(lambda: get_job(engine, job) is not None, "the event is in the store")
        before = dump(engine)
        assert streams("tracking", "rebuild", "--yes").startswith("Read ")
        assert dump(engine) == before
        sink.terminate()
        assert sink.wait(15) == 0
    finally:
        sink.kill()
        sink.wait()
        engine.dispose()
