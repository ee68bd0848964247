"""Bulk inserts that bypass SQLAlchemy, whose work for each row costs more than the database's own.

COPY on PostgreSQL, `executemany` on SQLite, inside the connection's transaction. Knows no tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format
from sqlalchemy import Connection

from models.database.faults import driver_errors
from models.database.postgresql import copying

#: A NUL in JSON text. A text that spells one (a backslash and `u0000`) has its backslash doubled, and stays.
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class JsonTextDumper(Dumper):
    """Writes JSON text in PostgreSQL's binary format: a version byte, then the text."""

    format = Format.BINARY
    oid = types["jsonb"].oid

    def dump(self, value: str) -> bytes:
        return b"\x01" + value.encode()


def insert_rows(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Inserts rows of plain values: JSON as text, timestamps as `timestamp_value` gives them.

    Raises `DBAPIError`, as SQLAlchemy's own inserts do.
    """
    cursor: Any = connection.connection.cursor()
    with closing(cursor), driver_errors(connection, cursor, f"INSERT INTO {table}"):
        if connection.dialect.name == "postgresql":
            _copy(connection, cursor, table, columns, rows)
        else:
            marks = ", ".join("?" * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)


def _copy(
    connection: Connection, cursor: Any, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """COPY in its binary format: values travel as their columns' types, without a detour through text."""
    names = ", ".join(columns)
    if (column_types := connection.info.get((table, names))) is None:  # once for each connection
        described = cursor.execute(f"SELECT {names} FROM {table} LIMIT 0").description
        column_types = connection.info[table, names] = [column.type_code for column in described]
    cursor.adapters.register_dumper(None, JsonTextDumper)  # for columns of its type, not for every text
    with copying(cursor.connection), cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(column_types)
        for row in rows:
            copy.write_row(row)


def without_nul(value: str) -> str:
    """The text with U+FFFD for NUL, which PostgreSQL's text cannot hold."""
    return value.replace("\0", "\ufffd")


def to_json(value: Any) -> str:
    """The value as JSON text, with U+FFFD for NUL."""
    return _ESCAPED_NUL.sub(r"\1\\ufffd", json.dumps(value))
