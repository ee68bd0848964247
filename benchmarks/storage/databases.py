"""Databases for benchmarks, in a folder that goes away: SQLite, or PostgreSQL of the pgserver wheel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models.database.connection import open_database
from tests.conftest import new_postgres_database

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
        import pgserver

        folder.chmod(0o755)  # the server runs as another user
        server = pgserver.get_server(str(folder / "postgres"))
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
            with new_postgres_database(url) as own:
                database = open_database(own)
                upgrade(database)
                yield folder, database
                database.dispose()
        finally:
            server.cleanup()
