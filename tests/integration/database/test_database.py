"""Opening databases: read-only is enforced by the database, and errors hold no password."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models.database.connection import check_connection, open_database
from models.database.faults import DatabaseUnavailable
from producer.errors import UsageError
from tests.support.table_rows import run_sql

WRITES = [
    "INSERT INTO workers VALUES ('a')",
    "DELETE FROM runs",
    "UPDATE runs SET name = 'x'",
    "DROP TABLE runs",
    "CREATE TABLE t (a int)",
]


@pytest.fixture(params=["sqlite", "postgresql"])
def reader(request: pytest.FixtureRequest) -> Engine:
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    writer = open_database(url)
    upgrade(writer)
    writer.dispose()
    engine = open_database(url, read_only=True)
    request.addfinalizer(engine.dispose)
    return engine


@pytest.mark.parametrize("statement", WRITES)
def test_a_read_only_connection_refuses_to_write(reader: Engine, statement: str) -> None:
    with pytest.raises(UsageError, match="refuses the statement"):
        run_sql(reader, statement)


def test_a_read_only_connection_reads(reader: Engine) -> None:
    assert run_sql(reader, "select count(*) as runs from runs") == (["runs"], [(0,)])
    assert run_sql(reader, "with x as (select 1 as a) select a from x")[1] == [(1,)]


@pytest.mark.parametrize(
    "statement", ["ATTACH 'other.db' AS other", "PRAGMA query_only = OFF", "SELECT load_extension('x')"]
)
def test_sqlite_has_no_way_around(sqlite_url: str, statement: str, tmp_path: Path) -> None:
    writer = open_database(sqlite_url)
    upgrade(writer)
    writer.dispose()
    reader = open_database(sqlite_url, read_only=True)
    with pytest.raises(UsageError, match="refuses the statement"):
        run_sql(reader, statement)
    assert not (tmp_path / "other.db").exists()
    reader.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION READ WRITE; CREATE TABLE t (a int); SELECT 1",
        "SET TRANSACTION READ WRITE",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "COMMIT; CREATE TABLE t (a int)",
    ],
)
def test_postgresql_cannot_be_switched_back_to_writing(postgres_url: str, statement: str) -> None:
    reader = open_database(postgres_url, read_only=True)
    with pytest.raises(UsageError):
        run_sql(reader, statement)
    assert run_sql(reader, "select count(*) from pg_tables where tablename = 't'")[1] == [(0,)]
    reader.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://localhost/x", "mysql is not supported"),
        ("postgresql+nothing://localhost/x", "no driver for"),
    ],
)
def test_a_wrong_url_says_what_to_give(url: str, message: str) -> None:
    with pytest.raises(DatabaseUnavailable, match=message):
        open_database(url)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    engine = open_database("postgresql://someone:secret@127.0.0.1:1/nocturne")
    with pytest.raises(DatabaseUnavailable) as raised:
        check_connection(engine)
    assert "127.0.0.1" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_reading_a_database_that_is_not_there_makes_none(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="there is no database at"):
        open_database(f"sqlite:///{tmp_path / 'none.db'}", read_only=True)
    assert not (tmp_path / "none.db").exists()
