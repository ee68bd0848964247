"""Opening the database for a command that changes it: reachable, and at this version's schema. Starts no server."""

from __future__ import annotations

from pathlib import Path
from secrets import token_urlsafe

from sqlalchemy import Engine

from migrations.reader_role import ReaderRefused, make_reader_role
from migrations.schema_state import SchemaState, check_schema, examine
from migrations.upgrade import current_revision, upgrade
from models.database.connection import (
    IN_MEMORY,
    check_connection,
    check_file,
    check_writable,
    is_missing,
    make_file,
    open_database,
)
from models.database.faults import DatabaseUnavailable, database_name
from models.settings import Settings
from producer.console import print_data, say
from producer.errors import UsageError
from producer.private_files import make_private_database


def upgraded_database(settings: Settings) -> Engine:
    """The database, made or upgraded to this version's schema; a database of somebody else's is left as it is."""
    if settings.database is None:
        make_private_database(settings.embedded_database)
    database = _open(settings)
    if not is_missing(database):
        check_connection(database)
    upgrade(database)
    return database


def _open(settings: Settings) -> Engine:
    """The settings' database, which outlives this process. Raises `DatabaseUnavailable`."""
    database = open_database(settings.database_url, deadlines=settings.deadlines)
    if database.url.database == ":memory:":
        raise DatabaseUnavailable(IN_MEMORY)
    return database


def writable_database(settings: Settings) -> Engine:
    """The database for a run decoded here: made where there is none; only the embedded one is upgraded."""
    if settings.database is None:
        return upgraded_database(settings)
    database = _open(settings)
    make_file(database)
    if examine(database).state == SchemaState.EMPTY:
        upgrade(database)
    check_schema(database)
    return database


def check_usable(settings: Settings) -> None:
    """Raises `DatabaseUnavailable` where `writable_database` would; makes and changes nothing."""
    database = _open(settings)
    if is_missing(database):
        return
    check_connection(database)
    check_writable(database)
    if examine(database).state != SchemaState.EMPTY:
        check_schema(database, may_be_older=settings.database is None)


def ready_database(settings: Settings) -> Engine:
    """The database at this version's schema; only the embedded one is made or upgraded."""
    if settings.database is None:
        return upgraded_database(settings)
    database = _open(settings)
    check_connection(database)
    check_schema(database)
    check_writable(database)
    return database


def existing_database(settings: Settings) -> Engine:
    """The database for a command that needs a run in it: never makes one. Raises `DatabaseUnavailable`."""
    if settings.database is None:
        check_file(str(settings.embedded_database))
        database = _open(settings)
        if examine(database).state == SchemaState.OLDER:
            upgrade(database)
        check_schema(database)
        check_writable(database)
        return database
    return ready_database(settings)


def show_upgrade(settings: Settings) -> None:
    """`producer db upgrade`: upgrades the database and prints its revision."""
    database = upgraded_database(settings)
    say(f"{database_name(database.url)} is at revision {current_revision(database)}")


def show_reader(settings: Settings, name: str, password_file: Path | None) -> None:
    """`producer db reader`: makes the role and prints its URL. Raises `UsageError`."""
    password = token_urlsafe(24) if password_file is None else _password_in(password_file)
    database = _open(settings)
    check_connection(database)
    if database.dialect.name != "postgresql":
        raise UsageError("`producer db reader` makes a role of PostgreSQL; SQLite has none, its files have rights")
    check_schema(database)
    try:
        make_reader_role(database, name, password)
    except ReaderRefused as refused:
        raise UsageError(str(refused)) from refused
    url = database.url.set(username=name, password=password)
    say(f"{name} may read {database_name(database.url)} and do nothing else; give its URL as NOCTURNE_READ_DATABASE")
    print_data(url.render_as_string(hide_password=password_file is not None))


def _password_in(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the password in {path}: {error}") from error
    if not password or "\0" in password:
        raise UsageError(f"{path} holds no password; write one line into it")
    return password
