"""Opens the database: the settings of a connection to SQLite; those to PostgreSQL are in `postgresql`. Knows no tables.

Opening makes no SQLite file; `migrations.upgrade` does. Errors are `DatabaseUnavailable` of `models.database.faults`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from models.database.deadlines import DEFAULT_DEADLINES, Call, Deadlines
from models.database.error_codes import SQLITE_REPLACED
from models.database.faults import (
    DatabaseUnavailable,
    as_database_error,
    damaged,
    database_name,
    remember_name,
    unavailable,
)
from models.database.postgresql import open_postgresql
from models.database.read_only import prepare_read_only_sqlite
from models.redacted import check_url, redacted, without_secrets

SQLITE_BUSY_SECONDS = 60

#: The wait of a thread for a connection to SQLite that others hold, which may wait for the lock several times over.
POOL_SECONDS = 10 * SQLITE_BUSY_SECONDS

IN_MEMORY = "a database in memory holds no run; give --database sqlite:///file.db"

JOURNAL_BYTES = 64 * 2**20  # to which SQLite cuts its write-ahead log


def open_database(url: str, *, read_only: bool = False, deadlines: Deadlines = DEFAULT_DEADLINES) -> Engine:
    """An engine for the URL; with `read_only` the database itself refuses every statement that would write."""
    parsed = _parse_url(url)
    try:
        if parsed.get_backend_name() == "sqlite":
            _check_sqlite_url(url, parsed)
            return _open_sqlite(parsed.database or "", read_only=read_only)
        engine = open_postgresql(parsed, deadlines, read_only=read_only)
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseUnavailable(f"no driver for {parsed.drivername}: {error}") from error
    event.listen(engine, "handle_error", remember_name)
    return engine


def limited(engine: Engine, call: Call) -> Engine:
    """The same engine, whose transactions have the deadlines of this kind of call."""
    return engine.execution_options(call=call)


def check_connection(engine: Engine) -> None:
    """Raises `DatabaseUnavailable` unless a statement can be run."""
    if is_missing(engine):
        url = engine.url.render_as_string()
        raise DatabaseUnavailable(
            f"there is no database at {engine.url.database}; check the path, or make it with: "
            f"producer db upgrade --database {url}"
        )
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except DBAPIError as error:
        told = str(unavailable(error, database_name(engine.url)))
        raise DatabaseUnavailable(without_secrets(told, engine.url.render_as_string(hide_password=False))) from error


def server_version(engine: Engine) -> str:
    """The database's name and version, as "PostgreSQL 18.4" or "SQLite 3.40.1"."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            return f"SQLite {connection.execute(text('SELECT sqlite_version()')).scalar_one()}"
        # "18.4 (Debian 18.4-1)" of some builds
        return f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one().split()[0]}"


def _parse_url(url: str) -> URL:
    """The URL's parts; PostgreSQL's default driver is psycopg."""
    try:
        check_url(url, "sqlite:///file.db or postgresql+psycopg://user@host/name")
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseUnavailable(f"not a database URL: {redacted(url)!r}") from error
    except ValueError as error:
        raise DatabaseUnavailable(f"not a database URL: {error}") from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseUnavailable(
            f"{parsed.get_backend_name()} is not supported; give a sqlite:/// or postgresql+psycopg:// URL"
        )
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _check_sqlite_url(given: str, url: URL) -> None:
    """Raises `DatabaseUnavailable` for a URL that would open another file than it says, or a file in another way."""
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise DatabaseUnavailable(f"{url.drivername} is not supported; give a sqlite:/// URL")
    if "?" in given:
        raise DatabaseUnavailable(
            f"not a database URL: {redacted(given)!r} has options, which SQLite does not get; write ? in a path as %3F"
        )
    try:
        os.stat(url.database or "")
    except (FileNotFoundError, NotADirectoryError):
        return  # its users make it or report it
    except (OSError, ValueError) as error:  # a link to itself, no right to enter a folder, too long, a NUL
        has_nul = "\0" in (url.database or "")  # whose name in Python's error differs from version to version
        reason = "it has a NUL character" if has_nul else getattr(error, "strerror", None) or str(error)
        raise DatabaseUnavailable(f"cannot use the database {url.database!r}: {reason}; check the path") from error


def _open_sqlite(path: str, *, read_only: bool) -> Engine:
    if path == "" or (read_only and path == ":memory:"):
        raise DatabaseUnavailable(IN_MEMORY)
    if read_only or _is_special(path):
        check_file(path)
    # Threads wait for the connections of others at least as long as those wait for the lock.
    waits = {} if path == ":memory:" else {"pool_timeout": POOL_SECONDS}
    # The URL is kept as it was given, for messages; the driver opens another one.
    engine = create_engine(URL.create("sqlite", database=path), creator=partial(_connect, path, read_only), **waits)
    event.listen(engine, "connect", prepare_read_only_sqlite if read_only else partial(_prepare_sqlite, path))
    event.listen(engine, "handle_error", remember_name)
    event.listen(engine, "handle_error", _leave_a_replaced_file)
    if not read_only:
        # The driver would begin a read transaction, and fail at its first write while another process holds the lock.
        # Beginning with the write lock lets it wait instead.
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def check_file(path: str) -> None:
    """Raises `DatabaseUnavailable` where a SQLite file is not there, or is a folder, a pipe or a device."""
    if Path(path).is_dir():
        raise DatabaseUnavailable(f"cannot use the database {path}: it is a folder; give the file in it")
    if _is_special(path):  # opening a pipe would wait for its other end, and not even Ctrl-C ends that
        raise DatabaseUnavailable(f"cannot use the database {path}: it is not a file; give the path of a file")
    if not Path(path).exists():
        raise DatabaseUnavailable(f"there is no database at {path}; submit a run first or give --database")


def _is_special(path: str) -> bool:
    return Path(path).exists() and not Path(path).is_file()


def is_missing(engine: Engine) -> bool:
    """Whether the database is a SQLite file that is not there yet."""
    path = engine.url.database
    return engine.dialect.name == "sqlite" and path not in (None, "", ":memory:") and not Path(path).exists()


def check_writable(engine: Engine) -> None:
    """Raises `DatabaseUnavailable` for a SQLite file that may only be read, before anything else is written."""
    path = Path(engine.url.database or "")
    if engine.dialect.name == "sqlite" and path.is_file() and not (_may_write(path) and _may_write(path.parent)):
        raise DatabaseUnavailable(
            f"cannot use the database {path}: it is read-only; check the rights of the file and of its folder"
        )


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def make_file(engine: Engine) -> None:
    """Makes the file of a SQLite database, empty, and its folder, where they are not there yet."""
    if not is_missing(engine):
        return
    path = Path(engine.url.database or "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise DatabaseUnavailable(f"cannot make the database {path}: {error.strerror}") from error


def write_ahead(engine: Engine) -> None:
    """Lets readers of a SQLite file go on while another process writes; the file keeps the mode."""
    if engine.dialect.name == "sqlite":
        with _outside_of_transactions(engine) as driver:
            driver.execute("PRAGMA journal_mode=WAL")


def empty_journal(engine: Engine) -> None:
    """Moves SQLite's write-ahead log into the file, as far as readers of older rows let it."""
    if engine.dialect.name == "sqlite":
        with _outside_of_transactions(engine) as driver:
            driver.execute("PRAGMA busy_timeout=1000")
            driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            driver.execute(f"PRAGMA busy_timeout={1000 * SQLITE_BUSY_SECONDS}")


@contextmanager
def _outside_of_transactions(engine: Engine) -> Iterator[Any]:
    """The driver's connection to a SQLite file, outside of any transaction; its errors are SQLAlchemy's."""
    try:
        with closing(engine.raw_connection()) as connection:
            yield connection.driver_connection
    except sqlite3.Error as error:
        raise as_database_error(error, "PRAGMA", engine) from error


def _leave_a_replaced_file(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlite_errorcode", 0) == SQLITE_REPLACED:
        context.is_disconnect = True


class _PooledConnection(sqlite3.Connection):
    """A connection that is closed with its pool, also where a command ends without disposing of its engine."""

    def __del__(self) -> None:
        with suppress(sqlite3.Error):
            self.close()


def _connect(path: str, read_only: bool) -> sqlite3.Connection:
    """Opens a SQLite file that exists; one in a folder that cannot be written is taken as unchanging."""
    if path in ("", ":memory:"):
        return sqlite3.connect(":memory:", check_same_thread=False, factory=_PooledConnection)
    file = Path(path).absolute()
    query = "mode=ro" if read_only else "mode=rw"
    # A journal beside it holds rows that are not in the file yet, or the way back from rows that never were committed.
    has_journal = any(file.with_name(f"{file.name}{ending}").exists() for ending in ("-wal", "-journal"))
    if read_only and not _may_write(file.parent) and not has_journal:
        query += "&immutable=1"  # else SQLite wants to make files beside it
    uri = f"{file.as_uri()}?{query}"
    return sqlite3.connect(
        uri, uri=True, timeout=SQLITE_BUSY_SECONDS, check_same_thread=False, factory=_PooledConnection
    )


def _prepare_sqlite(path: str, connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by the "begin" event alone
    try:
        for pragma in (
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "cache_size=-65536",
            f"journal_size_limit={JOURNAL_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except UnicodeDecodeError as error:  # the driver failed to decode SQLite's complaint about its schema
        connection.close()
        raise damaged(path, str(error)) from error
    except sqlite3.Error:
        connection.close()  # the pool does not: it has never had it
        raise
