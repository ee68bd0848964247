"""The databases' own codes of errors: the verdict on each, and the advice to a person.

PostgreSQL's are its SQLSTATEs, by code or by class, the longest that fits; SQLite's are its result codes, the extended
one before the primary one. A code that is in neither table is a rejection: the same statement never succeeds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

K = TypeVar("K")


class Verdict(StrEnum):
    """Whether to try a statement again that ended with an error, and when."""

    CONFLICT = "it lost to another transaction: at once"
    TIMEOUT = "it waited too long on a server that answers: later, with more time"
    OUTAGE = "later, whenever the database is back"
    VALUES = "the values of its rows may be at fault: without them"
    REJECTION = "never"


class Meaning(NamedTuple):
    """The verdict on a code, and the advice that follows the database's own words; None where there is none."""

    verdict: Verdict
    advice: str | None = None


UNREACHABLE = "check that the server runs, its host and its port"

_SERVER_LOG = "see the server's log"
_OTHER_HOLDS = "another program holds it; try again when that has ended"
_OTHER_WON = "another transaction was in the way; try again"
_ENDED = "the server ended the statement; try again"
_STRANGE_CODE = "a trigger or a function of this database raises it; ask its owner"

POSTGRESQL = {
    "08": Meaning(Verdict.OUTAGE, UNREACHABLE),
    "09": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "0A": Meaning(Verdict.REJECTION, "this server does not support it"),
    "20": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "21": Meaning(Verdict.VALUES),
    "22": Meaning(Verdict.VALUES),
    "23": Meaning(Verdict.VALUES),
    "25006": Meaning(Verdict.OUTAGE, "it takes no writes; give the primary server"),
    "25P03": Meaning(Verdict.OUTAGE, _ENDED),  # idle in a transaction for too long
    "25P04": Meaning(Verdict.OUTAGE, _ENDED),  # a transaction that took too long
    "27": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "28": Meaning(Verdict.REJECTION, "check user and password"),
    "2F": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "38": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "39": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "3D": Meaning(Verdict.REJECTION, "create it, or give another name"),
    "40": Meaning(Verdict.CONFLICT, _OTHER_WON),
    "40002": Meaning(Verdict.VALUES),  # a constraint, seen at the commit
    "40003": Meaning(Verdict.OUTAGE, UNREACHABLE),  # whether it was committed is not known
    "42501": Meaning(Verdict.REJECTION, "ask the owner for the rights, or give another user"),
    "44": Meaning(Verdict.VALUES),
    "53": Meaning(Verdict.OUTAGE, "the server has run out of something; see its log"),
    "54": Meaning(Verdict.VALUES),
    "55": Meaning(Verdict.REJECTION, _SERVER_LOG),
    "55000": Meaning(Verdict.OUTAGE, _SERVER_LOG),
    "55006": Meaning(Verdict.OUTAGE, _OTHER_HOLDS),
    "55P03": Meaning(Verdict.TIMEOUT, _OTHER_HOLDS),
    "57": Meaning(Verdict.OUTAGE, _ENDED),
    "57014": Meaning(Verdict.TIMEOUT, _ENDED),
    "58": Meaning(Verdict.OUTAGE, _SERVER_LOG),
    "72": Meaning(Verdict.CONFLICT, _OTHER_WON),
    "P0": Meaning(Verdict.VALUES, _STRANGE_CODE),
    "XX": Meaning(Verdict.REJECTION, _SERVER_LOG),  # damaged data or a damaged index
    "XX000": Meaning(Verdict.VALUES, _SERVER_LOG),  # an internal error, which too large a value is as well
}

#: A row refers to another one that is not there.
POSTGRESQL_MISSING_REFERENCE = "23503"

_RIGHTS = "check the rights of the file and of its folder"
_CUT_OFF = (
    "another program was cut off in the middle of writing; open the file once where it may be written, with the files "
    "of its name that end in -journal or -wal beside it: sqlite3 FILE .tables"
)
DAMAGED = "the file is damaged; restore a copy, or save what can be read with: sqlite3 FILE .recover"

SQLITE = {
    sqlite3.SQLITE_PERM: Meaning(Verdict.OUTAGE, _RIGHTS),
    sqlite3.SQLITE_BUSY: Meaning(Verdict.OUTAGE, _OTHER_HOLDS),
    sqlite3.SQLITE_LOCKED: Meaning(Verdict.OUTAGE, _OTHER_HOLDS),
    sqlite3.SQLITE_NOMEM: Meaning(Verdict.OUTAGE, "free some memory"),
    sqlite3.SQLITE_READONLY: Meaning(Verdict.OUTAGE, _RIGHTS),
    sqlite3.SQLITE_READONLY_ROLLBACK: Meaning(Verdict.OUTAGE, _CUT_OFF),
    sqlite3.SQLITE_READONLY_RECOVERY: Meaning(Verdict.OUTAGE, _CUT_OFF),
    sqlite3.SQLITE_READONLY_CANTINIT: Meaning(Verdict.OUTAGE, _CUT_OFF),
    sqlite3.SQLITE_READONLY_DBMOVED: Meaning(Verdict.OUTAGE, "another file was put into its place; try again"),
    sqlite3.SQLITE_INTERRUPT: Meaning(Verdict.OUTAGE, "the statement was stopped; try again"),
    sqlite3.SQLITE_IOERR: Meaning(Verdict.OUTAGE, "check the disk"),
    sqlite3.SQLITE_CORRUPT: Meaning(Verdict.REJECTION, DAMAGED),
    sqlite3.SQLITE_FULL: Meaning(Verdict.OUTAGE, "free some space"),
    sqlite3.SQLITE_CANTOPEN: Meaning(Verdict.OUTAGE, "check the path, and the rights of the file and of its folder"),
    sqlite3.SQLITE_PROTOCOL: Meaning(Verdict.OUTAGE, _OTHER_HOLDS),
    sqlite3.SQLITE_SCHEMA: Meaning(Verdict.OUTAGE, "another program changed the schema meanwhile; try again"),
    sqlite3.SQLITE_TOOBIG: Meaning(Verdict.VALUES),
    sqlite3.SQLITE_CONSTRAINT: Meaning(Verdict.VALUES),
    sqlite3.SQLITE_MISMATCH: Meaning(Verdict.VALUES),
    sqlite3.SQLITE_RANGE: Meaning(Verdict.VALUES),
    sqlite3.SQLITE_NOTADB: Meaning(Verdict.REJECTION, "it is not a SQLite file; give another --database"),
}

#: Of a connection to a file that another one has replaced: the next connection opens that.
SQLITE_REPLACED = sqlite3.SQLITE_READONLY_DBMOVED


def postgresql_meaning(code: str) -> Meaning:
    """The meaning of an SQLSTATE."""
    return _first(POSTGRESQL, (code, code[:2]))


def sqlite_meaning(code: int) -> Meaning:
    """The meaning of a result code, 0 for an error of the driver's own."""
    return _first(SQLITE, (code, code & 0xFF))


def _first(meanings: Mapping[K, Meaning], codes: tuple[K, K]) -> Meaning:
    return next((meanings[code] for code in codes if code in meanings), Meaning(Verdict.REJECTION))
