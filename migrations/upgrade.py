"""Upgrades a database to this version's schema, or back to an older one, with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from migrations.schema_state import SchemaOutOfDate, SchemaState, describe, examine
from models.database.connection import check_writable, make_file, write_ahead


def alembic_config(engine: Engine) -> Config:
    """Alembic's configuration for one database; `migrations/env.py` takes the engine from it."""
    config = Config()
    # The option is interpolated as in a configuration file, where a percent sign is written twice.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Brings the database up to a revision, the newest by default; makes a SQLite file that is not there.

    Raises `SchemaOutOfDate` for a newer database and for another program's, and changes nothing in them.
    """
    make_file(engine)
    schema = examine(engine)
    if schema.state in (SchemaState.FOREIGN, SchemaState.NEWER):
        raise SchemaOutOfDate(describe(schema, engine))
    check_writable(engine)
    write_ahead(engine)
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
