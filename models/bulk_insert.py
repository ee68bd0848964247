"""Writing many rows at once, past SQLAlchemy, whose work for each row would cost more than the database's.

COPY on PostgreSQL, `executemany` on SQLite; inside the connection's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


def insert_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Inserts rows of plain values; JSON as text, times by `moment`. Raises what SQLAlchemy would, `DBAPIError`."""
    cursor: Any = connection.connection.cursor()
    driver_error: Any = connection.dialect.loaded_dbapi.Error
    try:
        if connection.dialect.name == "postgresql":
            with cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
    except driver_error as error:
        raise DBAPIError.instance(
            f"INSERT INTO {table}", None, error, driver_error, dialect=connection.dialect
        ) from error
    finally:
        cursor.close()


def moment(connection: Connection, value: datetime | None) -> datetime | str | None:
    """A moment in UTC as `UtcDateTime` stores it."""
    if value is None or connection.dialect.name == "postgresql":
        return value
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def without_nul(value: str) -> str:
    """PostgreSQL's text cannot hold NUL."""
    return value.replace("\0", "\ufffd")


def to_json(value: Any) -> str:
    return json.dumps(value).replace("\\u0000", "\\ufffd")
