"""Opening the database: one place that knows how SQLite and PostgreSQL want to be held.

Raises `DatabaseUnavailable`, whose text a person can act on and which never holds a password.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Float, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from models.schema.base import UtcDateTime

SQLITE_BUSY_SECONDS = 60
IDLE_TRANSACTION_SECONDS = 60


class DatabaseUnavailable(Exception):
    """The database cannot be opened; says which one, and what to do."""


class database_now(GenericFunction[float]):
    """Seconds since 1970 by the database's clock, so that leases do not depend on the workers' clocks."""

    type = Float()
    inherit_cache = True


class database_moment(GenericFunction[datetime]):
    """So many seconds ago (0 where not given) by the database's clock, for columns that people read."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(database_moment, "sqlite")
def _sqlite_moment(element: Any, compiler: Any, **kwargs: Any) -> str:
    ago = compiler.process(element.clauses, **kwargs) or "0"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('-%f seconds', {ago}))"


@compiles(database_moment, "postgresql")
def _postgresql_moment(element: Any, compiler: Any, **kwargs: Any) -> str:
    ago = compiler.process(element.clauses, **kwargs) or "0"
    return f"(clock_timestamp() - make_interval(secs => {ago}))"


@compiles(database_now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def open_database(url: str, *, read_only: bool = False) -> Engine:
    """An engine for the URL; with `read_only` every statement that would write is refused by the database."""
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
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        if parsed.get_backend_name() == "sqlite":
            return _open_sqlite(parsed.database or "", read_only=read_only)
        # A process that was stopped in the middle of a transaction must not hold its locks for ever.
        arguments: dict[str, Any] = {
            "connect_timeout": 10,
            "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_SECONDS}s",
        }
        if read_only:
            # Preparing every statement lets it be one only: a second could begin to write.
            arguments["prepare_threshold"] = 0
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments)
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseUnavailable(f"no driver for {parsed.drivername}: {error}") from error
    if read_only:
        event.listen(engine, "connect", _make_postgresql_read_only)
    return engine


def check_connection(engine: Engine) -> None:
    """Raises `DatabaseUnavailable` unless a statement can be run."""
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except DBAPIError as error:
        raise unavailable(engine, error) from error


def unavailable(engine: Engine, error: DBAPIError) -> DatabaseUnavailable:
    """The driver's complaint in one line, with the URL but without its password."""
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    return DatabaseUnavailable(f"cannot use the database {engine.url.render_as_string()}: {reason}")


def _open_sqlite(path: str, *, read_only: bool) -> Engine:
    if read_only:
        if not Path(path).exists():
            raise DatabaseUnavailable(f"there is no database at {path}; submit a run first or give --database")
        url = f"sqlite:///file:{Path(path).absolute()}?mode=ro&uri=true"
    else:
        if path not in ("", ":memory:"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{path}"
    engine = create_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", _prepare_read_only_sqlite if read_only else _prepare_sqlite)
    if not read_only:
        # The driver would begin a read transaction and fail when it later turns into a write one while
        # another process holds the lock; beginning with the write lock lets it wait instead.
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
    """Allows reading only: no ATTACH, no PRAGMA that could lift `query_only`, no loaded code."""
    import sqlite3

    harmless = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
    if action in harmless:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and second not in ("load_extension", "writefile", "readfile", "edit"):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_TRANSACTION:
        return sqlite3.SQLITE_OK
    if (
        action == sqlite3.SQLITE_PRAGMA
        and first in ("table_info", "table_list", "index_list")
        or (action == sqlite3.SQLITE_PRAGMA and second is None and first in ("user_version", "journal_mode"))
    ):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def _make_postgresql_read_only(connection: Any, record: Any) -> None:
    """Read-only transactions; and no superuser, who could run programs and end sessions in them."""
    connection.read_only = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone()[0]:
            cursor.execute("SET ROLE pg_read_all_data")
    connection.commit()
