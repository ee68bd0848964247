"""Upgrades a database to this version's schema, or reports the difference between the two."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine


class SchemaOutOfDate(Exception):
    """The database's schema is not this version's; the text names the command that fixes it."""


def alembic_config(engine: Engine) -> Config:
    """Alembic's configuration for one database; `migrations/env.py` takes the engine from it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Brings the database up to a revision, the newest by default."""
    command.upgrade(alembic_config(engine), revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Brings the database back to an earlier revision."""
    command.downgrade(alembic_config(engine), revision)


def current_revision(engine: Engine) -> str | None:
    """The revision the database is at; None where it is empty."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision(engine: Engine) -> str | None:
    """The revision this version of the code writes."""
    return ScriptDirectory.from_config(alembic_config(engine)).get_current_head()


def check_schema(engine: Engine) -> None:
    """Raises `SchemaOutOfDate` unless the database is at this version's revision."""
    found, wanted = current_revision(engine), head_revision(engine)
    if found == wanted:
        return
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config(engine)).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaOutOfDate(
            f"the database is at revision {found}, which is newer than this program ({wanted}); "
            "upgrade Nocturne on this machine"
        )
    raise SchemaOutOfDate(
        f"the database is at revision {found or 'none'}, this program needs {wanted}; run: producer db upgrade"
    )
