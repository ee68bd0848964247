"""Drafts the next migration: `python -m migrations.revision "what changes"`.

It compares the tables of the code with those of the last revision, on an empty SQLite database. Triggers, views and
what only PostgreSQL has are added by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command

from migrations.upgrade import alembic_config, head_revision, upgrade
from models.database.connection import open_database


def write_revision(message: str) -> None:
    """Adds `NNNN_message.py` to `migrations/versions`, N the next number."""
    with TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{Path(folder) / 'empty.db'}")
        upgrade(engine)
        number = f"{int(head_revision(engine) or 0) + 1:04}"
        command.revision(alembic_config(engine), message, autogenerate=True, rev_id=number)
        engine.dispose()


if __name__ == "__main__":
    write_revision(" ".join(sys.argv[1:]))
