"""Opens the database: the settings of a connection to SQLite and to PostgreSQL. Knows no tables.

Errors are `DatabaseUnavailable`, whose text says what to do and never holds a password.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

SQLITE_BUSY_SECONDS = 60
IDLE_TRANSACTION_SECONDS = 60


class DatabaseUnavailable(Exception):
    """The database cannot be opened; the text names it and says what to do."""


def open_database(url: str, *, read_only: bool = False) -> Engine:
    """An engine for the URL; with `read_only` the database itself refuses every statement that would write."""
    parsed = _parse_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed.database or "", read_only=read_only)
        return _open_postgresql(parsed, read_only=read_only)
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseUnavailable(f"no driver for {parsed.drivername}: {error}") from error


def check_connection(engine: Engine) -> None:
    """Raises `DatabaseUnavailable` unless a statement can be run."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except DBAPIError as error:
        raise unavailable(engine, error) from error


def server_version(engine: Engine) -> str:
    """The database's name and version, as "PostgreSQL 18.4" or "SQLite 3.40.1"."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            return f"SQLite {connection.execute(text('SELECT sqlite_version()')).scalar_one()}"
        # "18.4 (Debian 18.4-1)" of some builds
        return f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one().split()[0]}"


def unavailable(engine: Engine, error: DBAPIError) -> DatabaseUnavailable:
    """The driver's complaint in one line, with the URL but without its password."""
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    return DatabaseUnavailable(f"cannot use the database {engine.url.render_as_string()}: {reason}")


def _parse_url(url: str) -> URL:
    """The URL's parts; PostgreSQL's default driver is psycopg."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUnavailable(
            f"not a database URL: {url!r}; give sqlite:///file.db or postgresql+psycopg://user@host/name"
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseUnavailable(
            f"{parsed.get_backend_name()} is not supported; give a sqlite:/// or postgresql+psycopg:// URL"
        )
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _open_postgresql(url: URL, *, read_only: bool) -> Engine:
    # A process that was stopped in the middle of a transaction must not hold its locks forever.
    arguments: dict[str, Any] = {
        "connect_timeout": 10,
        "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_SECONDS}s",
    }
    if read_only:
        # PostgreSQL prepares one statement at a time: a second one, which could begin to write, is refused.
        arguments["prepare_threshold"] = 0
    engine = create_engine(url, pool_pre_ping=True, connect_args=arguments)
    if read_only:
        event.listen(engine, "connect", _make_postgresql_read_only)
    return engine


def _open_sqlite(path: str, *, read_only: bool) -> Engine:
    if read_only:
        if not Path(path).exists():
            raise DatabaseUnavailable(f"there is no database at {path}; submit a run first or give --database")
        url = URL.create("sqlite", database=Path(path).absolute().as_uri(), query={"mode": "ro", "uri": "true"})
    else:
        if path not in ("", ":memory:"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        url = URL.create("sqlite", database=path)
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_read_only_sqlite if read_only else _prepare_sqlite)
    if not read_only:
        # The driver would begin a read transaction, and fail at its first write while another process holds the lock.
        # Beginning with the write lock lets it wait instead.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by the "begin" event alone
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "cache_size=-65536"):
        connection.execute(f"PRAGMA {pragma}")


def _prepare_read_only_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.set_authorizer(_sqlite_authorizer)


def _sqlite_authorizer(action: int, first: str | None, second: str | None, *rest: Any) -> int:
    """Allows reads only: no ATTACH, no PRAGMA that could lift `query_only`, no loaded code."""
    if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE, sqlite3.SQLITE_TRANSACTION):
        is_allowed = True
    elif action == sqlite3.SQLITE_FUNCTION:
        is_allowed = second not in ("load_extension", "writefile", "readfile", "edit")
    elif action == sqlite3.SQLITE_PRAGMA:
        is_read = second is None and first in ("user_version", "journal_mode")
        is_allowed = is_read or first in ("table_info", "table_list", "index_list")
    else:
        is_allowed = False
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def _make_postgresql_read_only(connection: Any, record: Any) -> None:
    """Makes transactions read-only, and drops a superuser's rights: they could run programs and end sessions."""
    connection.read_only = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone()[0]:
            cursor.execute("SET ROLE pg_read_all_data")
    connection.commit()
