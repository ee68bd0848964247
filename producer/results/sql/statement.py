"""A stranger's statement: it only reads, it ends in time, and it holds nothing while its rows are looked at.

On SQLite the connection's authorizer refuses. On PostgreSQL a cursor takes nothing but one SELECT, the transaction is
read-only, and functions that the server itself calls volatile are refused, but for a few: whatever changes something
beside rows (files, sessions, locks, settings, replication) is one of them.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from models.database.sqlite_functions import INTERRUPTED_ERRORS, WRONG_VALUE, WRONG_VALUE_ERROR
from producer.errors import UsageError
from producer.results.sql.function_names import called_names
from producer.results.sql.spool import Spool

DEFAULT_TIMEOUT = 60.0
ROWS_PER_FETCH = 1_000
OPCODES_PER_CHECK = 10_000
MARGIN_SECONDS = 10.0  # for the server to say that it has stopped

#: Volatile functions of PostgreSQL that change nothing.
HARMLESS = frozenset(
    """
    array_sample array_shuffle bernoulli clock_timestamp current_query currval gen_random_uuid lastval
    pg_blocking_pids pg_database_size pg_indexes_size pg_is_in_recovery pg_relation_size pg_sequence_last_value pg_sleep
    pg_sleep_for pg_sleep_until pg_table_size pg_tablespace_size pg_total_relation_size random random_normal system
    timeofday uuidv4 uuidv7
""".split()
)

#: Of PostgreSQL's own functions the volatile ones; of all others those that are not immutable, since extensions call
#: functions stable that run any SQL text (tablefunc's crosstab).
_REFUSED = """
SELECT p.proname FROM pg_catalog.pg_proc p
WHERE p.proname = ANY(%(called)s)
AND CASE WHEN p.pronamespace = 'pg_catalog'::regnamespace
    THEN p.provolatile = 'v' AND p.proname <> ALL(%(harmless)s)
    ELSE p.provolatile <> 'i' END
ORDER BY p.proname
"""


@dataclass
class Answer:
    """The columns of a statement and its rows."""

    columns: list[str]
    rows: Spool


@contextmanager
def answer(database: Engine, statement: str, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Answer]:
    """The rows of a statement; `database` must be read-only. Raises `UsageError`; Ctrl-C raises as ever."""
    if "\0" in statement:
        raise UsageError("the database refuses the statement: it has a NUL character")
    run = _sqlite_rows if database.dialect.name == "sqlite" else _postgresql_rows
    with Spool() as rows:
        yield Answer(run(database, statement, timeout, rows), rows)


def _took_too_long(timeout: float) -> UsageError:
    return UsageError(f"the statement takes longer than {timeout:g} s and was stopped; give more with --timeout")


def _refused(error: BaseException) -> UsageError:
    told = str(error).strip()
    return UsageError(f"the database refuses the statement: {WRONG_VALUE if told == WRONG_VALUE_ERROR else told}")


def _sqlite_rows(database: Engine, statement: str, timeout: float, rows: Spool) -> list[str]:
    connection: Any = database.raw_connection()
    driver: sqlite3.Connection = connection.driver_connection
    deadline = time.monotonic() + timeout
    # A Ctrl-C is seen here too: Python raises it in the function, and SQLite takes the exception for a stop.
    driver.set_progress_handler(lambda: time.monotonic() > deadline, OPCODES_PER_CHECK)
    try:
        cursor = driver.execute(statement)
        if cursor.description is None:
            raise UsageError("the statement returns no rows; `producer sql` only reads")
        while some := cursor.fetchmany(ROWS_PER_FETCH):
            rows.extend(some)
        return [column[0] for column in cursor.description]
    except (sqlite3.Error, sqlite3.Warning) as error:
        if str(error) in INTERRUPTED_ERRORS:
            raise KeyboardInterrupt from error
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise _refused(error) from error
        if time.monotonic() > deadline:
            raise _took_too_long(timeout) from error
        raise KeyboardInterrupt from error
    finally:
        connection.invalidate()  # ends a statement that was not read to its end
        connection.close()


def _postgresql_rows(database: Engine, statement: str, timeout: float, rows: Spool) -> list[str]:
    from psycopg import Error
    from psycopg.errors import QueryCanceled

    deadline = time.monotonic() + timeout
    with database.connect() as connection:
        connection.begin()  # read-only, and without a superuser's rights
        driver: Any = connection.connection.driver_connection
        try:
            return _read_cursor(driver, statement, deadline, rows)
        except QueryCanceled as error:
            raise _took_too_long(timeout) from error
        except Error as error:
            raise _refused(error) from error
        finally:
            connection.invalidate()  # rolls back, with all that a session could keep


def _read_cursor(driver: Any, statement: str, deadline: float, rows: Spool) -> list[str]:
    driver.execute("SET LOCAL standard_conforming_strings = on")
    _check_functions(driver, statement)
    _limit(driver, deadline)
    with driver.cursor(name="nocturne_sql") as cursor:  # psycopg declares it by the protocol that takes one statement
        cursor.execute(statement)
        columns = [column.name for column in cursor.description or ()]
        while some := cursor.fetchmany(ROWS_PER_FETCH):
            rows.extend(some)
            _limit(driver, deadline)
        return columns


def _limit(driver: Any, deadline: float) -> None:
    """Gives the next command of the transaction the time that is left."""
    milliseconds = max(1, int(1000 * (deadline - time.monotonic())))
    driver.answer_seconds = milliseconds / 1000 + MARGIN_SECONDS
    driver.execute(f"SET LOCAL statement_timeout = {milliseconds}")


def _check_functions(driver: Any, statement: str) -> None:
    """Raises `UsageError` for a call of a function that might do more than read."""
    names = {"called": sorted(called_names(statement)), "harmless": sorted(HARMLESS)}
    if refused := [name for (name,) in driver.execute(_REFUSED, names)]:
        raise UsageError(
            f"the database refuses the statement: {refused[0]}() may do more than read, and `producer sql` only reads"
        )
