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
    sqlite3.SQLITE_NOTADB: "it is no SQLite file; give another --database",
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
    return url.render_as_string()


def remember_name(context: ExceptionContext) -> None:
    """Notes the database in an error, for the message of `unavailable` and for a traceback."""
    if context.engine is not None:
        error = context.sqlalchemy_exception or context.original_exception
        error.add_note(f"{NOTE}{database_name(context.engine.url)}")


def noted_name(error: BaseException) -> str | None:
    """The database that an error of its statements comes from."""
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith(NOTE)]
    return notes[0].removeprefix(NOTE) if notes else None


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


def _advice(error: DBAPIError) -> str | None:
    original: Any = error.orig
    if isinstance(original, sqlite3.Error):
        if str(original).startswith("Could not decode to UTF-8"):
            return SQLITE_ADVICE[sqlite3.SQLITE_CORRUPT]
        return SQLITE_ADVICE.get(getattr(original, "sqlite_errorcode", 0) & 0xFF)
    code = getattr(original, "sqlstate", None)
    if code is None:  # no answer of the server
        return UNREACHABLE if type(original).__name__ == "OperationalError" else None
    return POSTGRESQL_ADVICE.get(code) or POSTGRESQL_ADVICE.get(code[:2])
