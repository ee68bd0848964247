"""Writing many rows at once, past SQLAlchemy, whose work for each row would cost more than the database's.

COPY on PostgreSQL, `executemany` on SQLite; inside the connection's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError


class JsonTextDumper(Dumper):
    """JSON that is text already, in PostgreSQL's binary format: a version, then the text."""

    format = Format.BINARY
    oid = types["jsonb"].oid

    def dump(self, value: str) -> bytes:
        return b"\x01" + value.encode()


def insert_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Inserts rows of plain values; JSON as text, times by `moment`. Raises what SQLAlchemy would, `DBAPIError`."""
    cursor: Any = connection.connection.cursor()
    driver_error: Any = connection.dialect.loaded_dbapi.Error
    try:
        if connection.dialect.name == "postgresql":
            _copy(cursor, table, columns, rows)
        else:
            marks = ", ".join("?" * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)
    except driver_error as error:
        raise DBAPIError.instance(
            f"INSERT INTO {table}", None, error, driver_error, dialect=connection.dialect
        ) from error
    finally:
        cursor.close()


def _copy(cursor: Any, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """COPY in its binary format, which takes each value as its column's type and spares both sides the text."""
    names = ", ".join(columns)
    column_types = [column.type_code for column in cursor.execute(f"SELECT {names} FROM {table} LIMIT 0").description]
    cursor.adapters.register_dumper(None, JsonTextDumper)  # for columns of its type, not for every text
    with cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(column_types)
        for row in rows:
            copy.write_row(row)


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
