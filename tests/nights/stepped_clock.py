"""A database clock that tests can set: our SQL for times reads it, no other clock of the machine changes.

On SQLite `julianday` and `strftime` are replaced in each connection; on PostgreSQL a schema before `pg_catalog` in the
search path has a `clock_timestamp` of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, create_engine, event, text

UNIX_EPOCH_JULIAN = 2440587.5


def replace_sqlite_clock(connection: sqlite3.Connection, now: Callable[[], float]) -> None:
    """Lets SQL of this connection read the time, in seconds since 1970, from `now`."""

    def julianday(value: str) -> float:
        assert value == "now"
        return now() / 86400.0 + UNIX_EPOCH_JULIAN

    def strftime(form: str, value: str, shift: str = "0 seconds") -> str:
        assert value == "now"
        seconds = now() + float(shift.removesuffix(" seconds").replace("--", ""))
        assert form == "%Y-%m-%d %H:%M:%f000", form
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")

    connection.create_function("julianday", 1, julianday)
    connection.create_function("strftime", -1, strftime)


def replace_sqlite_clocks(engine: Engine, now: Callable[[], float]) -> None:
    """The same for each connection that the engine opens."""

    def on_connect(connection: Any, record: Any) -> None:  # noqa: ARG001
        replace_sqlite_clock(connection, now)

    event.listen(engine, "connect", on_connect)


#: Seconds since 1970 where `is_fixed`, else seconds that the real time is moved by.
POSTGRESQL_CLOCK = """
DROP SCHEMA IF EXISTS stepped CASCADE;
CREATE SCHEMA stepped;
CREATE TABLE stepped.clock (is_fixed boolean, seconds double precision);
INSERT INTO stepped.clock VALUES (false, 0);
CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN is_fixed THEN pg_catalog.to_timestamp(seconds)
           ELSE pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => seconds) END FROM stepped.clock
$$;
"""


def replace_postgresql_clock(engine: Engine) -> None:
    """Gives a database a clock that `set_postgresql_clock` sets; connections opened from now on read it."""
    engine.dispose()
    name = engine.url.database
    admin = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(POSTGRESQL_CLOCK))
        connection.execute(text(f'ALTER DATABASE "{name}" SET search_path = public, stepped, pg_catalog'))
    admin.dispose()


def set_postgresql_clock(engine: Engine, seconds: float, *, is_fixed: bool) -> None:
    with engine.begin() as connection:
        statement = text("UPDATE stepped.clock SET seconds = :seconds, is_fixed = :is_fixed")
        connection.execute(statement, {"seconds": seconds, "is_fixed": is_fixed})
