"""How the store is reached, and what its errors mean.

TrackingError
├── DatabaseUnavailable    no connection; nothing is known about the schema
├── SchemaOutdated         the tables are older or newer than this code
├── Fenced                 another sink has taken the partition over
├── AmbiguousJob           the job id names jobs of several organizations
└── InvalidCursor          a page cursor that no page gave out
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError


class TrackingError(Exception):
    """Root of the errors raised on purpose; the message is one sentence."""


class DatabaseUnavailable(TrackingError):
    """The database cannot be reached, or cannot do now what was asked of it."""


class SchemaOutdated(TrackingError):
    """The tables do not fit this code."""


class Fenced(TrackingError):
    """Another sink has taken the partition over; what this one read of it is that one's to write."""


class AmbiguousJob(TrackingError):
    """More than one organization has a job with this id."""


class InvalidCursor(TrackingError):
    """The cursor is none that a page gave out."""


def open_database(url: str, *, pool_size: int = 5, application: str = "streams") -> Engine:
    """Return an engine for a PostgreSQL URL; nothing is connected yet.

    Parameters are hidden from errors and logs: they hold what customers sent. Raises DatabaseUnavailable
    when the URL is none, without quoting it: it holds a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseUnavailable(
            "DATABASE_URL is no URL; expected postgresql://user@host/database"
        ) from None
    if parsed.drivername.split("+")[0] not in ("postgresql", "postgres"):
        raise DatabaseUnavailable(f"DATABASE_URL must begin with postgresql://, got {parsed.drivername}://")
    return create_engine(
        parsed.set(drivername="postgresql+psycopg2"),
        hide_parameters=True,
        pool_size=pool_size,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": 5,
            "application_name": application,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # A client that is frozen in a transaction must not hold its locks for ever.
            "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=30s",
        },
    )


@contextmanager
def connected(database: Engine | Connection) -> Iterator[Connection]:
    """Give a connection of the engine, or the connection itself, with the driver's errors in our words."""
    try:
        if isinstance(database, Connection):
            yield database
        else:
            with database.connect() as connection:
                yield connection
    except DBAPIError as error:
        raise (meaning(error) or error) from error


_UNDEFINED = ("42P01", "42703")  # table, column
_CONNECTION = ("08", "28", "3D", "57")  # connection, login, database, shutdown
_PASSING = ("40", "53")  # a transaction given up, as by a deadlock; disk, memory or connections used up


def sqlstate(error: DBAPIError) -> str:
    """Return PostgreSQL's code of the error, or "" when it never reached the server."""
    return str(getattr(error.orig, "pgcode", None) or "")


def meaning(error: DBAPIError) -> TrackingError | None:
    """Return what the driver's error means in the words of this package, or None."""
    state = sqlstate(error)
    if state in _UNDEFINED:
        return SchemaOutdated("the database has not the tables of this version: run `streams db upgrade`")
    if state[:2] in _CONNECTION or (isinstance(error, OperationalError) and not state):
        return DatabaseUnavailable(f"the database cannot be reached: {_first_line(error)}")
    if state[:2] in _PASSING:
        return DatabaseUnavailable(f"the database cannot do this now: {_first_line(error)}")
    return None


def _first_line(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else "no answer"


def refuses_the_data(error: DBAPIError) -> bool:
    """Return whether the server refused what was written, so that writing it again is no use.

    22 data exception, 23 a constraint, 54 a limit of the server. All else passes: a lost connection, a
    restart, a deadlock, a missing table.
    """
    return sqlstate(error)[:2] in ("22", "23", "54")
