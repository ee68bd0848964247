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
from threading import Event, Thread
from typing import Any

from sqlalchemy import Engine

from models.database.read_only import MAX_SQLITE_MEMORY
from models.database.sqlite_functions import WRONG_VALUE, WRONG_VALUE_ERROR
from producer.errors import UsageError
from producer.results.sql.function_names import called_names
from producer.results.sql.spool import Spool
from producer.terminal_text import is_storable

DEFAULT_TIMEOUT = 60.0
MAX_TIMEOUT = 2e6  # seconds, three weeks; PostgreSQL counts milliseconds in 31 bits
ROWS_PER_FETCH = 1_000
INTERRUPT_SECONDS = 0.05
MARGIN_SECONDS = 10.0  # for the database to say that it has stopped

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
    if not is_storable(statement):
        raise UsageError("the database refuses the statement: it is not UTF-8")
    run = _sqlite_rows if database.dialect.name == "sqlite" else _postgresql_rows
    with Spool() as rows:
        yield Answer(run(database, statement, min(timeout, MAX_TIMEOUT), rows), rows)


def _took_too_long(timeout: float) -> UsageError:
    return UsageError(f"the statement takes longer than {timeout:g} s and was stopped; give more with --timeout")


def _refused(error: BaseException) -> UsageError:
    told = str(error).strip()
    return UsageError(f"the database refuses the statement: {WRONG_VALUE if told == WRONG_VALUE_ERROR else told}")


def _sqlite_rows(database: Engine, statement: str, timeout: float, rows: Spool) -> list[str]:
    """Reads in a thread: a single step of SQLite's may take minutes, and only an interruption from outside ends it."""
    connection: Any = database.raw_connection()
    reading = _Reading(connection.driver_connection, statement, rows)
    try:
        return reading.run_within(timeout)
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise (_took_too_long(timeout) if reading.is_late else _refused(error)) from error
    except MemoryError as error:
        raise UsageError(f"the statement needs more than {MAX_SQLITE_MEMORY >> 20:,} MiB of memory") from error
    finally:
        if reading.has_ended:
            connection.invalidate()  # ends a statement that was not read to its end
            connection.close()
        else:
            _stuck.append(connection)  # to close it would wait for the statement


#: Connections whose statement could not be interrupted: one call of a function of SQLite's takes so long.
_stuck: list[Any] = []


class _Reading(Thread):
    """One statement of SQLite: its columns, with its rows in the spool, or its error."""

    def __init__(self, driver: sqlite3.Connection, statement: str, rows: Spool) -> None:
        super().__init__(name="statement", daemon=True)
        self._driver = driver
        self._statement = statement
        self._rows = rows
        self._columns: list[str] = []
        self._error: BaseException | None = None
        self._has_ended = Event()
        self.is_late = False

    @property
    def has_ended(self) -> bool:
        return self._has_ended.is_set()

    def run_within(self, timeout: float) -> list[str]:
        """The columns of the statement. Raises its error, which is an interruption's when it is late."""
        self.start()
        try:
            self.is_late = not self._has_ended.wait(timeout)  # Ctrl-C raises here
        finally:
            self._interrupt()
        if not self.has_ended:
            raise _took_too_long(timeout)
        if self._error is not None:
            raise self._error
        return self._columns

    def _interrupt(self) -> None:
        """Waits for the end of a statement that is to stop, but not for that of a single long call."""
        given_up = time.monotonic() + MARGIN_SECONDS
        while not self._has_ended.wait(INTERRUPT_SECONDS) and time.monotonic() < given_up:
            self._driver.interrupt()

    def run(self) -> None:
        """The thread's main function."""
        try:
            cursor = self._driver.execute(self._statement)
            if cursor.description is None:
                raise UsageError("the statement returns no rows; `producer sql` only reads")
            self._rows.extend(cursor)  # row by row: each may be large
            self._columns = [column[0] for column in cursor.description]
        except BaseException as error:
            self._error = error
        finally:
            self._has_ended.set()


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
        while _fetch(driver, rows):
            _limit(driver, deadline)
        return columns


def _fetch(driver: Any, rows: Spool) -> bool:
    """Takes some rows from the cursor one by one, since each may be large; false where they were the last."""
    before = rows.num_rows
    with driver.cursor() as cursor:
        rows.extend(cursor.stream(f"FETCH {ROWS_PER_FETCH} FROM nocturne_sql"))
    return rows.num_rows - before == ROWS_PER_FETCH


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
