"""Opening the database for a command that changes it: reachable, and at this version's schema. Starts no server."""

from __future__ import annotations

from sqlalchemy import Engine

from migrations.schema_state import SchemaState, check_schema, examine
from migrations.upgrade import current_revision, upgrade
from models.database.connection import (
    check_connection,
    check_file,
    check_writable,
    is_missing,
    make_file,
    open_database,
)
from models.database.faults import database_name
from models.settings import Settings
from producer.console import say
from producer.private_files import make_private_database


def upgraded_database(settings: Settings) -> Engine:
    """The database, made or upgraded to this version's schema; a database of somebody else's is left as it is."""
    if settings.database is None:
        make_private_database(settings.embedded_database)
    database = open_database(settings.database_url, deadlines=settings.deadlines)
    upgrade(database)
    return database


def writable_database(settings: Settings) -> Engine:
    """The database for a run decoded here: made where there is none; only the embedded one is upgraded."""
    if settings.database is None:
        return upgraded_database(settings)
    database = open_database(settings.database_url, deadlines=settings.deadlines)
    make_file(database)
    if examine(database).state == SchemaState.EMPTY:
        upgrade(database)
    check_schema(database)
    return database


def check_usable(settings: Settings) -> None:
    """Raises `DatabaseUnavailable` where `writable_database` would; makes and changes nothing."""
    database = open_database(settings.database_url, deadlines=settings.deadlines)
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
    database = open_database(settings.database_url, deadlines=settings.deadlines)
    check_connection(database)
    check_schema(database)
    check_writable(database)
    return database


def existing_database(settings: Settings) -> Engine:
    """The database for a command that needs a run in it: never makes one. Raises `DatabaseUnavailable`."""
    if settings.database is None:
        check_file(str(settings.embedded_database))
        database = open_database(settings.database_url, deadlines=settings.deadlines)
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
