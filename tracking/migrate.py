"""Bring the tables to this version."""

from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from tracking.database import SchemaOutdated, connected, open_database

_LOCK = 0x73747265616D73
"""Advisory lock that upgrades of one database queue up at."""


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("tracking") / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Return the revision that this code needs."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current(database: Engine | Connection) -> str | None:
    """Return the revision that the database has, or None before the first upgrade."""
    with connected(database) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database_url: str) -> str:
    """Apply the missing migrations, all or none, and return the revision reached.

    Upgrades that run at once wait for each other.
    """
    engine = open_database(database_url, pool_size=1, application="streams-upgrade")
    try:
        with connected(engine) as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            command.upgrade(_config(connection), "head")
            return str(current(connection))
    finally:
        engine.dispose()


def require_current(database: Engine | Connection) -> None:
    """Raise SchemaOutdated unless the database has the revision of this code."""
    found, needed = current(database), head()
    if found == needed:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaOutdated(f"the database is at revision {found}, newer than this version of streams knows")
    raise SchemaOutdated(
        f"the database is at {found or 'no'} revision, not at {needed}: run `streams db upgrade`"
    )
