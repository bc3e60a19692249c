"""Upgrades: from nothing, twice, many at once; and the models say the same."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text

from tracking import migrate
from tracking.database import DatabaseUnavailable, SchemaOutdated, open_database
from tracking.models import JobExecution, LifecycleEvent, Model, SinkPosition

pytestmark = pytest.mark.stack


def test_models_and_migrations_say_the_same(database: str) -> None:
    migrate.upgrade(database)
    engine = open_database(database)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Model.metadata) == []
        found = inspect(connection)
        for model in (JobExecution, LifecycleEvent, SinkPosition):
            table = Model.metadata.tables[model.__tablename__]
            checks = {check["name"] for check in found.get_check_constraints(table.name)}
            assert checks == {one.name for one in table.constraints if isinstance(one, CheckConstraint)}
    engine.dispose()


def test_upgrading_again_changes_nothing(database: str) -> None:
    engine = open_database(database)
    assert migrate.current(engine) is None
    assert migrate.upgrade(database) == migrate.upgrade(database) == migrate.head()
    assert migrate.current(engine) == migrate.head()
    migrate.require_current(engine)
    engine.dispose()


def test_upgrades_at_once_wait_for_each_other(database: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(migrate.upgrade, [database] * 8)) == {migrate.head()}


def test_a_schema_that_does_not_fit_is_named_in_a_sentence(database: str) -> None:
    engine = open_database(database)
    with pytest.raises(SchemaOutdated, match="run `streams db upgrade`"):
        migrate.require_current(engine)
    migrate.upgrade(database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaOutdated, match="newer than this version"):
        migrate.require_current(engine)
    engine.dispose()


def test_a_database_that_is_not_there_is_named_in_a_sentence() -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        migrate.upgrade("postgresql://nobody:secret@127.0.0.1:1/none")
