"""Opening the database for a command that reads. The connection itself refuses every statement that would write."""

from __future__ import annotations

from sqlalchemy import Engine

from migrations.schema_state import check_schema
from models.database.connection import check_connection, open_database
from models.settings import Settings


def readable_database(settings: Settings, *, may_be_older: bool = False) -> Engine:
    """The database, read-only, at this version's schema or an older one where it may be.

    Raises `DatabaseUnavailable`.
    """
    database = open_database(settings.database_url, read_only=True, deadlines=settings.deadlines)
    check_connection(database)
    check_schema(database, may_be_older=may_be_older)
    return database
