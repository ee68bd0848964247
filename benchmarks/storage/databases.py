"""Databases for benchmarks, in a folder that goes away: SQLite, or PostgreSQL from a wheel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models.database.connection import open_database
from tests.support.postgres import new_postgres_database, running_postgres

DATABASES = ("sqlite", "postgresql")


@contextmanager
def fresh_database(kind: str) -> Iterator[tuple[Path, Engine]]:
    """A folder, and a database at this version's schema."""
    with TemporaryDirectory(prefix="nocturne-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if kind == "sqlite":
            database = open_database(f"sqlite:///{folder / 'nocturne.db'}")
            upgrade(database)
            yield folder, database
            database.dispose()
            return
        with running_postgres() as server, new_postgres_database(server.url) as url:
            database = open_database(url)
            upgrade(database)
            yield folder, database
            database.dispose()
