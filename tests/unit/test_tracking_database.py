"""What the driver's errors mean to whoever asked the store."""

from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from tracking.database import DatabaseUnavailable, SchemaOutdated, meaning


class Refused(Exception):
    """As psycopg2 raises it."""

    def __init__(self, pgcode: str | None, text: str) -> None:
        super().__init__(text)
        self.pgcode = pgcode
        self.diag = SimpleNamespace(constraint_name=None)


@pytest.mark.parametrize(
    ("pgcode", "said"),
    [
        (None, "the database cannot be reached: it broke"),
        ("08006", "the database cannot be reached: it broke"),
        ("57P01", "the database cannot be reached: it broke"),
        ("40P01", "the database cannot do this now: it broke"),
        ("53100", "the database cannot do this now: it broke"),
    ],
)
def test_what_passes_is_unavailable(pgcode: str | None, said: str) -> None:
    known = meaning(OperationalError("select 1", {}, Refused(pgcode, "it broke\nDETAIL: here\n")))
    assert isinstance(known, DatabaseUnavailable)
    assert str(known) == said


def test_a_missing_table_is_an_old_schema() -> None:
    known = meaning(ProgrammingError("select 1", {}, Refused("42P01", "no such table")))
    assert isinstance(known, SchemaOutdated)


def test_refused_values_have_no_other_meaning() -> None:
    assert meaning(ProgrammingError("select 1", {}, Refused("22001", "too long"))) is None
