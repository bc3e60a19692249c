"""The reference page names every column, state, kind and question."""

from pathlib import Path

from tracking import analytics
from tracking.events import KINDS
from tracking.fold import IDENTITY, LEAST, REGISTERS
from tracking.models import JobExecution, LifecycleEvent, Model

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "tracking.md").read_text()


def section(start: str, end: str) -> str:
    return PAGE.split(start)[1].split(end)[0]


def test_every_column_is_explained() -> None:
    executions = section("### `job_executions`", "### `lifecycle_events`")
    events = section("### `lifecycle_events`", "### `rollups`")
    assert [c.name for c in JobExecution.__table__.columns if f"`{c.name}`" not in executions] == []
    assert [c.name for c in LifecycleEvent.__table__.columns if f"`{c.name}`" not in events] == []
    assert [name for name in Model.metadata.tables if f"`{name}`" not in PAGE] == []


def test_every_question_is_listed() -> None:
    questions = [name for name in analytics.__all__ if name.startswith(("get_", "cleanup_"))]
    assert len(questions) == 8
    assert [name for name in questions if f"| `{name}` |" not in PAGE] == []


def test_the_steps_of_a_delivery_are_those_of_the_fold() -> None:
    steps = section("step within the delivery (", ")").replace("\n", " ").replace("`", "")
    named = [word.strip() for step in steps.split(",") for word in step.split(" or ")]
    assert named == sorted(named, key=KINDS.index)
    assert set(named) == set(KINDS) - {"completed"}


def test_every_column_belongs_to_one_part_of_the_fold() -> None:
    folded = [
        *IDENTITY,
        *LEAST,
        *REGISTERS,
        *(column for columns in REGISTERS.values() for column in columns),
    ]
    assert sorted(folded) == sorted(c.name for c in JobExecution.__table__.columns if c.computed is None)
