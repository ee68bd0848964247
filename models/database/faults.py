"""Tells a fault of the database or of its surroundings from a wrong statement of ours, and words it in one line.

A damaged file, a lock, missing rights or a server that is away is `DatabaseUnavailable`, whose text says what to do and
never holds a password. Everything else that a driver raises is an error of the program.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from models.redacted import redacted

#: SQLite's primary result codes that no statement of ours causes, and the advice for each.
SQLITE_ADVICE = {
    sqlite3.SQLITE_PERM: "check the rights of the file and of its folder",
    sqlite3.SQLITE_BUSY: "another program holds it; try again when that has ended",
    sqlite3.SQLITE_LOCKED: "another program holds it; try again when that has ended",
    sqlite3.SQLITE_NOMEM: "free some memory",
    sqlite3.SQLITE_READONLY: "check the rights of the file and of its folder",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a copy, or save what can be read with: sqlite3 FILE .recover",
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_CANTOPEN: "check the path, and the rights of the file and of its folder",
    sqlite3.SQLITE_PROTOCOL: "another program holds it; try again when that has ended",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite file; give another --database",
}

#: The same for PostgreSQL's codes and classes of codes; the longest that fits.
POSTGRESQL_ADVICE = {
    "08": "check that the server runs, its host and its port",
    "25006": "it takes no writes; give the primary server",
    "28": "check user and password",
    "3D": "create it, or give another name",
    "42501": "ask the owner for the rights, or give another user",
    "53": "the server has run out of something; see its log",
    "55P03": "another program holds it; try again when that has ended",
    "57": "the server ended the statement; try again",
    "58": "see the server's log",
    "XX": "see the server's log",
}

#: PostgreSQL's codes, and beginnings of codes, of an outage: gone when the server, its disk or its primary is back.
#: Read-only, a session ended by a time limit, resources, an object in use or locked, an operator, the system.
POSTGRESQL_OUTAGES = ("08", "25006", "25P03", "25P04", "40", "53", "55000", "55006", "55P03", "57", "58")

#: Those of a transaction that lost to another one and may be repeated at once.
POSTGRESQL_CONFLICTS = ("40001", "40P01")

#: Those of a statement that waited too long for a lock or for its end, while the server answers others.
POSTGRESQL_TIMEOUTS = ("55P03", "57014")

#: Those that the values of a row cause: numbers, texts and sizes that a column or the server cannot take.
POSTGRESQL_DATA_FAULTS = ("21", "22", "23", "54", "XX000")

#: A row refers to another one that is not there.
POSTGRESQL_MISSING_REFERENCE = "23503"

SQLITE_OUTAGES = frozenset(SQLITE_ADVICE) - {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
SQLITE_DATA_FAULTS = (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE)

#: The beginning of the note that `remember_name` leaves in an error.
NOTE = "in the database "

CHECK_SECONDS = 5.0

UNREACHABLE = "check that the server runs, its host and its port"


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
    return DatabaseUnavailable(f"cannot use the database {path}: {shown}; {SQLITE_ADVICE[sqlite3.SQLITE_CORRUPT]}")


def is_unavailable(error: DBAPIError) -> bool:
    """Whether the database or its surroundings are at fault, and not a statement of ours."""
    return _advice(error) is not None


def unavailable(error: DBAPIError, name: str | None = None) -> DatabaseUnavailable:
    """The driver's complaint in one line, with the database and the advice."""
    reason = " ".join(str(error.orig).split()) or type(error.orig).__name__
    if name is None:
        name = noted_name(error) or ""
    advice = _advice(error)
    shown = f"cannot use the database {name}".rstrip()
    return DatabaseUnavailable(f"{shown}: {reason}" + (f"; {advice}" if advice else ""))


def is_outage(error: DBAPIError) -> bool:
    """Whether the same statement can succeed later: the database is away, full, locked, or takes no writes.

    A session that ended in any way is one; a statement that the server or the driver refuses otherwise is not.
    """
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_code(original) in SQLITE_OUTAGES
    if error.connection_invalidated:
        return True
    code = getattr(original, "sqlstate", None)
    if code is None:  # of the driver: while connecting, or about a statement that it cannot send
        return error.statement is None
    return str(code).startswith(POSTGRESQL_OUTAGES)


def is_conflict(error: DBAPIError) -> bool:
    """Whether the transaction lost to another one and may be repeated at once."""
    return getattr(error.orig, "sqlstate", None) in POSTGRESQL_CONFLICTS


def is_timeout(error: DBAPIError) -> bool:
    """Whether the statement waited too long, for a lock or for its own end, on a server that answers."""
    return getattr(error.orig, "sqlstate", None) in POSTGRESQL_TIMEOUTS


def is_data_fault(error: DBAPIError) -> bool:
    """Whether the values of the statement are at fault: another job's may well be stored."""
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return _sqlite_code(original) in SQLITE_DATA_FAULTS or type(original) is sqlite3.DataError
    code = getattr(original, "sqlstate", None)
    if code is None:  # the driver cannot send them
        return not error.connection_invalidated
    return str(code).startswith(POSTGRESQL_DATA_FAULTS)


def is_missing_reference(error: DBAPIError) -> bool:
    """Whether a row that the statement's rows refer to is not there."""
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    return getattr(original, "sqlstate", None) == POSTGRESQL_MISSING_REFERENCE


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for an error of the driver's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _advice(error: DBAPIError) -> str | None:
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        if str(original).startswith("Could not decode to UTF-8"):
            return SQLITE_ADVICE[sqlite3.SQLITE_CORRUPT]
        return SQLITE_ADVICE.get(_sqlite_code(original))
    code = getattr(original, "sqlstate", None)
    if code is None:  # no answer of the server
        return UNREACHABLE if type(original).__name__ == "OperationalError" else None
    return POSTGRESQL_ADVICE.get(code) or POSTGRESQL_ADVICE.get(code[:2])
