"""Opening the database for a command that reads. The connection itself refuses every statement that would write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from migrations.schema_state import check_schema
from models.database.connection import check_connection, open_database
from models.database.faults import note_name
from models.database.read_only import is_superuser
from models.settings import Settings
from producer.errors import UsageError


def reading_url(settings: Settings) -> str:
    """The URL that commands read by: that of the reading role, where one is given."""
    return settings.read_database or settings.database_url


def readable_database(settings: Settings, *, may_be_older: bool = False) -> Engine:
    """The database, read-only, at this version's schema or an older one where it may be.

    Raises `DatabaseUnavailable`.
    """
    database = open_database(reading_url(settings), read_only=True, deadlines=settings.deadlines)
    check_connection(database)
    check_schema(database, may_be_older=may_be_older)
    return database


@contextmanager
def reading(settings: Settings, *, may_be_older: bool = False) -> Iterator[Engine]:
    """The database of the block, which is named in whatever its values raise: a damaged file may hold any."""
    database = readable_database(settings, may_be_older=may_be_older)
    try:
        yield database
    except Exception as error:
        note_name(error, database.url)
        raise
    finally:
        database.dispose()


def check_reading_role(database: Engine, *, as_superuser: bool) -> None:
    """Raises `UsageError` for a superuser of PostgreSQL, whose rights reach beyond the database."""
    if database.dialect.name != "postgresql" or as_superuser:
        return
    with database.connect() as connection:
        if not is_superuser(connection):
            return
    raise UsageError(
        f"the user {database.url.username or 'of this URL'} is a superuser of PostgreSQL, who can do more than read; "
        "give --read-database (NOCTURNE_READ_DATABASE) with a role that may only read, which `producer db reader` "
        "makes, or --as-superuser to go on this once"
    )
