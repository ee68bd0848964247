"""Connections that can only read: SQLite's authorizer and limits, and who logs in on PostgreSQL."""

from __future__ import annotations

import sqlite3
from typing import Any

from sqlalchemy import Connection

from models.database.sqlite_functions import NAMES, add_functions

#: Functions that only compute. A build of SQLite may have others, which read files or load code.
SQLITE_FUNCTIONS = frozenset(
    """
    -> ->> abs acos acosh asin asinh atan atan2 atanh avg ceil ceiling char coalesce concat concat_ws cos cosh count
    cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor format
    glob group_concat hex ifnull iif if instr json json_array json_array_length json_array_insert json_error_position
    json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
    json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_array_insert jsonb_extract
    jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set
    julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim max min mod
    nth_value ntile nullif octet_length percent_rank percentile_cont percentile_disc pi pow power printf
    quote radians random randomblob rank replace round row_number rtrim sign sin sinh soundex sqlite_version sqrt
    strftime string_agg substr substring subtype sum tan tanh time timediff total trim trunc typeof unhex unicode
    unistr unistr_quote unixepoch unlikely upper zeroblob
""".split()
).union(NAMES)

#: Pragmas that show something; only without an argument, but for those that take a table's name.
SQLITE_PRAGMAS = frozenset({"user_version", "journal_mode"})
SQLITE_PRAGMAS_OF_TABLES = frozenset({"table_info", "table_list", "index_list"})

MAX_SQLITE_VALUE = 2**28  # bytes of one value

#: Bytes that SQLite may take in this process: a statement can have thousands of columns of that size.
MAX_SQLITE_MEMORY = 2**30

#: Whether the login is a superuser or may become one.
_IS_SUPERUSER = "SELECT bool_or(rolsuper) FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER')"


def prepare_read_only_sqlite(connection: Any, record: Any) -> None:  # noqa: ARG001
    connection.isolation_level = None
    try:
        connection.execute(f"PRAGMA hard_heap_limit={MAX_SQLITE_MEMORY}").fetchall()
        connection.execute("PRAGMA query_only=ON")
    except (sqlite3.Error, UnicodeDecodeError):
        connection.close()  # the pool does not: it has never had it
        raise
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SQLITE_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    add_functions(connection)
    connection.set_authorizer(_authorize)


def _authorize(action: int, first: str | None, second: str | None, *rest: Any) -> int:  # noqa: ARG001
    """Allows reads only: no ATTACH, no PRAGMA that could lift `query_only`, no transaction that stays open."""
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE):
        is_allowed = True
    elif action == sqlite3.SQLITE_TRANSACTION:
        is_allowed = first == "ROLLBACK"
    elif action == sqlite3.SQLITE_FUNCTION:
        is_allowed = second is not None and second.lower() in SQLITE_FUNCTIONS
    elif action == sqlite3.SQLITE_PRAGMA:
        is_allowed = first in SQLITE_PRAGMAS_OF_TABLES or (first in SQLITE_PRAGMAS and second is None)
    else:
        is_allowed = False
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def is_superuser(connection: Connection) -> bool:
    """Whether the login of a PostgreSQL connection is a superuser, or a member of one's role."""
    driver: Any = connection.connection.driver_connection
    ((found,),) = driver.execute(_IS_SUPERUSER).fetchall()
    return bool(found)
