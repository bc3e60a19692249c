"""The SQL in the documentation runs on the tables that the migrations make."""

import re
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tracking import migrate

pytestmark = pytest.mark.stack

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "analyse.md"


def test_every_statement_runs(database: str) -> None:
    migrate.upgrade(database)
    statements = [
        statement
        for block in re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
        for statement in block.split(";")
        if statement.strip()
    ]
    assert len(statements) >= 4
    engine = create_engine(database)
    with engine.connect() as connection:
        for statement in statements:
            assert connection.execute(text(statement)).all() == []
    engine.dispose()
