"""Opening the database for a command that changes it: reachable, and at this version's schema. Starts no server."""

from __future__ import annotations

from sqlalchemy import Engine

from migrations.upgrade import SchemaOutOfDate, check_schema, current_revision, upgrade
from models.database.connection import check_connection, open_database
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError


def upgraded_database(settings: Settings) -> Engine:
    """The database, made or upgraded to this version's schema."""
    database = open_database(settings.database_url)
    check_connection(database)
    upgrade(database)
    return database


def ready_database(settings: Settings) -> Engine:
    """The database at this version's schema; only the embedded one is made or upgraded. Raises `UsageError`."""
    if settings.database is None:
        return upgraded_database(settings)
    database = open_database(settings.database_url)
    check_connection(database)
    try:
        check_schema(database)
    except SchemaOutOfDate as error:
        raise UsageError(str(error)) from error
    return database


def existing_database(settings: Settings) -> Engine:
    """The database for a command that needs a run in it: never makes one. Raises `UsageError`."""
    if settings.database is None and not settings.embedded_database.exists():
        raise UsageError(f"there is no database at {settings.embedded_database}; submit a run first or give --database")
    return ready_database(settings)


def show_upgrade(settings: Settings) -> None:
    """`producer db upgrade`: upgrades the database and prints its revision."""
    database = upgraded_database(settings)
    say(f"{database.url.render_as_string()} is at revision {current_revision(database)}")
