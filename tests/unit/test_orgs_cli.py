"""`streams orgs top`: what it prints, for people and for programs, once and again and again."""

import json
import time

import pytest
from click.testing import CliRunner

from cli import orgs
from cli.main import main
from streams.standings import OTHERS
from streams.top import Row, Top

ROWS = (Row("acme", 1, 3, 2, 7, 40, 30.0, 0.75, 0.5), Row(OTHERS, 12, 1, 0, 0, 0, 10.0, 0.25, 0.5))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, object]]:
    """Answer for the workers; the third question is never asked, for the operator has typed Ctrl-C by then."""
    questions: list[tuple[object, object]] = []

    async def answer(control: object, admission: object, *, most: int, queue_name: str | None) -> Top:
        questions.append((queue_name, most))
        return Top(ROWS, ("primary/gone",))

    def sleep(seconds: float) -> None:
        if len(questions) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(orgs, "ask_all", answer)
    monkeypatch.setattr(time, "sleep", sleep)
    return questions


def test_people_get_a_table_and_are_told_who_is_silent(asked: list[tuple[object, object]]) -> None:
    result = CliRunner().invoke(main, ["orgs", "top", "--queue", "emails", "--limit", "5"])
    assert result.exit_code == 0, result.output
    assert asked == [("emails", 5)]
    acme, others = [line for line in result.stdout.splitlines() if "acme" in line or "others" in line]
    assert [cell.strip() for cell in acme.split("│")[1:-1]] == [
        "acme", "3", "2", "7", "40", "30.0", "75.0", "50.0",
    ]  # fmt: skip
    assert "12 others" in others
    assert result.stderr == "primary/gone did not answer; what it has is missing\n"


def test_programs_get_lines_and_watching_goes_on_until_ctrl_c(asked: list[tuple[object, object]]) -> None:
    result = CliRunner().invoke(main, ["orgs", "top", "--json", "--watch"])
    assert result.exit_code == 0, result.output
    assert asked == [(None, 20)] * 2
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["organization_id"] for row in rows] == ["acme", OTHERS] * 2
    assert rows[0]["share"] == 0.75


def test_a_queue_that_there_is_not_is_an_error(asked: list[tuple[object, object]]) -> None:
    result = CliRunner().invoke(main, ["orgs", "top", "--queue", "email"])
    assert result.exit_code == 1
    assert "unknown queue 'email'; expected one of critical" in result.output
    assert asked == []
