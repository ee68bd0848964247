"""Tells a fault of the database or of its surroundings from a wrong statement of ours, and words it in one line.

A damaged file, a lock, missing rights or a server that is away is `DatabaseUnavailable`, whose text says what to do and
never holds a password. Everything else that a driver raises is an error of the program.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, StatementError

from models.database.error_codes import (
    DAMAGED,
    POSTGRESQL_MISSING_REFERENCE,
    UNREACHABLE,
    Meaning,
    Verdict,
    postgresql_meaning,
    sqlite_meaning,
)
from models.redacted import redacted

#: The beginning of the note that `remember_name` leaves in an error.
NOTE = "in the database "

CHECK_SECONDS = 5.0


class DatabaseUnavailable(Exception):
    """The database cannot be used; the text names it and says what to do."""


def database_name(url: URL) -> str:
    """The database in a message: a SQLite file's path, or the URL without its password."""
    if url.get_backend_name() == "sqlite":
        return url.database or ":memory:"
    return redacted(url.render_as_string())


def remember_name(context: ExceptionContext) -> None:
    """Notes the database in an error, for the message of `unavailable` and for a traceback."""
    if context.engine is not None:
        error = context.sqlalchemy_exception or context.original_exception
        error.add_note(f"{NOTE}{database_name(context.engine.url)}")


def note_name(error: BaseException, url: URL) -> None:
    """Notes the database in an error that its values brought about, such as a number where none can be."""
    error.add_note(f"{NOTE}{database_name(url)}")


def as_database_error(error: Exception, statement: str, engine: Engine, *, is_closed: bool = False) -> StatementError:
    """A driver's error as SQLAlchemy's, with the database's name."""
    kind: Any = engine.dialect.loaded_dbapi.Error
    wrapped = DBAPIError.instance(
        statement, None, error, kind, connection_invalidated=is_closed, dialect=engine.dialect
    )
    note_name(wrapped, engine.url)
    return wrapped


@contextmanager
def driver_errors(connection: Connection, cursor: Any, statement: str) -> Iterator[None]:
    """A block that uses the driver's cursor past SQLAlchemy: its errors are `DBAPIError`s too, with the database."""
    kind: Any = connection.dialect.loaded_dbapi.Error
    try:
        yield
    except kind as error:
        is_closed = bool(connection.dialect.is_disconnect(error, connection.connection.driver_connection, cursor))
        if is_closed:
            connection.invalidate(error)
        raise as_database_error(error, statement, connection.engine, is_closed=is_closed) from error


def noted_name(error: BaseException) -> str | None:
    """The database that an error of its statements comes from."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(NOTE)]
    return notes[0].removeprefix(NOTE) if notes else None


def first_line(error: object) -> str:
    """The first line of an error's text, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def damage(error: BaseException) -> DatabaseUnavailable | None:
    """The damage of the SQLite file that an unexpected error comes from; None where the file is whole.

    Damage shows itself as any error: text that is not UTF-8, a missing row, a state that cannot be.
    """
    path = noted_name(error)
    if path is None or not Path(path).is_file():
        return None
    try:
        connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        deadline = time.monotonic() + CHECK_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
        try:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return None  # it takes too long to tell
    except (sqlite3.Error, UnicodeDecodeError) as fault:
        found = str(fault)
    return None if found == "ok" else damaged(path, found)


def damaged(path: str, reason: str) -> DatabaseUnavailable:
    """The complaint about a damaged SQLite file."""
    shown = " ".join(reason.split())
    return DatabaseUnavailable(f"cannot use the database {path}: {shown}; {DAMAGED}")


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database or its surroundings are at fault, and not a statement of ours."""
    return _meaning(error).advice is not None


def unavailable(error: DBAPIError, name: str | None = None) -> DatabaseUnavailable:
    """The driver's complaint in one line, with the database and the advice."""
    reason = " ".join(str(error.orig).split()) or type(error.orig).__name__
    if name is None:
        name = noted_name(error) or ""
    advice = _meaning(error).advice
    shown = f"cannot use the database {name}".rstrip()
    return DatabaseUnavailable(f"{shown}: {reason}" + (f"; {advice}" if advice else ""))


def verdict_on(error: DBAPIError) -> Verdict:
    """Whether and when to try again. A session that ended in any way is an outage: another session may go on."""
    if error.connection_invalidated and not isinstance(error.orig, sqlite3.Error):
        return Verdict.OUTAGE
    return _meaning(error).verdict


def is_outage(error: DBAPIError) -> bool:
    """Whether the same statement can succeed later: the database is away, full, locked, or takes no writes."""
    return verdict_on(error) in (Verdict.CONFLICT, Verdict.TIMEOUT, Verdict.OUTAGE)


def is_conflict(error: DBAPIError) -> bool:
    """Whether the transaction lost to another one and may be repeated at once."""
    return verdict_on(error) == Verdict.CONFLICT


def is_timeout(error: DBAPIError) -> bool:
    """Whether the statement waited too long, for a lock or for its own end, on a server that answers."""
    return verdict_on(error) == Verdict.TIMEOUT


def is_data_fault(error: DBAPIError) -> bool:
    """Whether the values of the statement may be at fault: another job's may well be stored."""
    return verdict_on(error) == Verdict.VALUES


def is_value_fault(error: DBAPIError) -> bool:
    """Whether the error itself blames the values: too large a number, a text or a size that it cannot hold."""
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        is_of_trigger = getattr(original, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_TRIGGER
        return is_data_fault(error) and not is_of_trigger
    return is_data_fault(error) and str(getattr(original, "sqlstate", None)).startswith(("22", "23", "54"))


def is_missing_reference(error: DBAPIError) -> bool:
    """Whether a row that the statement's rows refer to is not there."""
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    return getattr(original, "sqlstate", None) == POSTGRESQL_MISSING_REFERENCE


def _meaning(error: DBAPIError) -> Meaning:
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_meaning(original)
    code = getattr(original, "sqlstate", None)
    if code is not None:
        return postgresql_meaning(str(code))
    # Of the driver: without an answer of the server, or about values that it cannot send.
    is_unanswered = type(original).__name__ == "OperationalError"
    is_away = error.statement is None or error.connection_invalidated
    return Meaning(Verdict.OUTAGE if is_away else Verdict.VALUES, UNREACHABLE if is_unanswered else None)


def _sqlite_meaning(error: sqlite3.Error) -> Meaning:
    if str(error).startswith("Could not decode to UTF-8"):
        return Meaning(Verdict.REJECTION, DAMAGED)
    if type(error) is sqlite3.DataError:  # of the driver: longer than it can send
        return Meaning(Verdict.VALUES)
    return sqlite_meaning(getattr(error, "sqlite_errorcode", 0))
