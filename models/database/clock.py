"""Times by the database's clock, which all workers share; their own clocks may differ.

People read timestamps (`jobs.finished_at` and the like, `UtcDateTime`); a lease is only ever compared, and is seconds
since 1970 (`jobs.lease_expires_at`). Each has one function here, and nothing else writes SQL for a time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.functions import GenericFunction

from models.schema.base import UtcDateTime
from models.schema.job import Job


class database_timestamp(GenericFunction[datetime]):
    """The time so many seconds ago (0 where not given), in UTC."""

    type = UtcDateTime()
    inherit_cache = True


class database_epoch(GenericFunction[float]):
    """Seconds since 1970."""

    type = Float()
    inherit_cache = True


class seconds_between(GenericFunction[float]):
    """The seconds from the first time to the second one, on SQLite to a ten thousandth."""

    type = Float()
    inherit_cache = True


def lease_end(lease_seconds: float) -> ColumnElement[float]:
    """The value of `lease_expires_at` for a lease that is taken or renewed now."""
    return database_epoch() + lease_seconds


def is_lease_doubtful(lease_seconds: float, least_part: float) -> ColumnElement[bool]:
    """The condition on a running job whose lease has less than that part left, or more than a lease can have.

    Either its worker does not renew it, or the clock was set, or another program has written the row.
    """
    now, end = database_epoch(), Job.lease_expires_at
    return or_(end < now + least_part * lease_seconds, end > now + lease_seconds, end.is_(None))


def is_older_than(time: InstrumentedAttribute[Any], seconds: float) -> ColumnElement[bool]:
    """The condition on a time of the database that it is so long ago.

    A time in the future is from before the clock was set back: its age is unknown, and counts as old.
    """
    return or_(time < database_timestamp(seconds), time > database_timestamp())


def read_timestamp(connection: Connection) -> datetime:
    """The time now."""
    return connection.execute(select(database_timestamp())).scalar_one()


def read_epoch(connection: Connection) -> float:
    """The time now, in seconds since 1970."""
    return connection.execute(select(database_epoch())).scalar_one()


def timestamp_value(connection: Connection, value: datetime | None) -> datetime | str | None:
    """A timestamp as `UtcDateTime` stores it, for rows that are written past SQLAlchemy."""
    if value is None or connection.dialect.name == "postgresql":
        return value
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@compiles(database_timestamp, "sqlite")
def _sqlite_timestamp(element: Any, compiler: Any, **kwargs: Any) -> str:
    seconds_ago = compiler.process(element.clauses, **kwargs) or "0"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('-%f seconds', {seconds_ago}))"


@compiles(database_timestamp, "postgresql")
def _postgresql_timestamp(element: Any, compiler: Any, **kwargs: Any) -> str:
    seconds_ago = compiler.process(element.clauses, **kwargs) or "0"
    return f"(clock_timestamp() - make_interval(secs => {seconds_ago}))"


@compiles(database_epoch, "sqlite")
def _sqlite_epoch(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_epoch, "postgresql")
def _postgresql_epoch(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(seconds_between, "sqlite")
def _sqlite_seconds(element: Any, compiler: Any, **kwargs: Any) -> str:
    first, second = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"((julianday({second}) - julianday({first})) * 86400.0)"


@compiles(seconds_between, "postgresql")
def _postgresql_seconds(element: Any, compiler: Any, **kwargs: Any) -> str:
    first, second = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"extract(epoch from ({second} - {first}))::double precision"
