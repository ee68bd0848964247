"""One history of the schema, the same on both databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DBAPIError

import migrations.upgrade
import models.database.connection
from migrations.schema_state import SchemaOutOfDate, check_schema
from migrations.upgrade import (
    alembic_config,
    current_revision,
    downgrade,
    head_revision,
    upgrade,
)
from migrations.views import view_definitions
from models.database.connection import open_database, write_ahead
from models.database.faults import unavailable
from models.schema.tables import Base
from tests.support.processes import HANG_SECONDS, clean_environment


def test_upgrade_and_downgrade(empty_database: Engine) -> None:
    upgrade(empty_database)
    check_schema(empty_database)
    assert current_revision(empty_database) == head_revision(empty_database)
    inspector = inspect(empty_database)
    assert set(inspector.get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    assert set(inspector.get_view_names()) == set(view_definitions("sqlite"))
    downgrade(empty_database, "base")
    assert inspect(empty_database).get_table_names() == ["alembic_version"]
    assert inspect(empty_database).get_view_names() == []
    upgrade(empty_database)
    check_schema(empty_database)


def test_the_history_ends_at_the_models(empty_database: Engine) -> None:
    upgrade(empty_database)
    command.check(alembic_config(empty_database))  # raises where a migration is missing


def test_upgrading_twice_changes_nothing(database: Engine) -> None:
    upgrade(database)
    check_schema(database)


def test_upgrades_at_the_same_time_wait_for_each_other(postgres_url: str, tmp_path: Path) -> None:
    """As replicas of a job, or machines that begin their first run."""
    command = [sys.executable, "-m", "producer", "db", "upgrade", "--database", postgres_url]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=clean_environment())
        for _ in range(4)
    ]
    told = [process.communicate(timeout=HANG_SECONDS)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told


@pytest.mark.parametrize("statement", ["BEGIN", "BEGIN EXCLUSIVE"])
def test_a_file_that_another_program_reads_is_told_in_a_line(
    sqlite_url: str, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was restored by SQLite's shell is in the old mode, which a reader keeps it in."""
    monkeypatch.setattr(models.database.connection, "SQLITE_BUSY_SECONDS", 0.1)
    engine = open_database(sqlite_url)
    upgrade(engine)
    engine.dispose()
    other = sqlite3.connect(str(engine.url.database), isolation_level=None)
    other.execute("PRAGMA journal_mode=DELETE")
    other.execute(statement)
    other.execute("SELECT count(*) FROM runs").fetchone()
    with pytest.raises(DBAPIError) as raised:
        write_ahead(engine)
    assert str(unavailable(raised.value)).endswith(
        "database is locked; another program holds it; try again when that has ended"
    )
    other.close()
    engine.dispose()


def test_the_folder_of_migrations_may_have_any_name(
    empty_database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "100%s a%b #1?"
    folder.mkdir()
    (folder / "migrations").symlink_to(Path(migrations.upgrade.__file__).parent)
    monkeypatch.setattr(migrations.upgrade, "__file__", str(folder / "migrations" / "upgrade.py"))
    upgrade(empty_database)
    check_schema(empty_database)


def test_an_empty_database_is_told_what_to_run(empty_database: Engine) -> None:
    with pytest.raises(SchemaOutOfDate, match="run: producer db upgrade"):
        check_schema(empty_database)


def test_a_newer_database_is_told_apart(database: Engine) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    with pytest.raises(SchemaOutOfDate, match="newer than this program"):
        check_schema(database)


def test_sqlite_writes_ahead(sqlite_database: Engine) -> None:
    with sqlite_database.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_the_views_have_the_same_columns_on_both(sqlite_database: Engine, postgres_url: str) -> None:
    from models.database.connection import open_database

    postgres = open_database(postgres_url)
    upgrade(postgres)
    for view in view_definitions("sqlite"):
        ours = [column["name"] for column in inspect(sqlite_database).get_columns(view)]
        theirs = [column["name"] for column in inspect(postgres).get_columns(view)]
        assert ours == theirs and ours, view
    postgres.dispose()
