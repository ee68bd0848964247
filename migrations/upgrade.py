"""Upgrades a database to this version's schema, or back to an older one, with Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from migrations.schema_state import SchemaOutOfDate, SchemaState, describe, examine
from models.database.connection import check_writable, make_file, write_ahead
from models.database.faults import DatabaseUnavailable, damage, database_name, is_unavailable


def alembic_config(engine: Engine) -> Config:
    """Alembic's configuration for one database; `migrations/env.py` takes the engine from it."""
    config = Config()
    # The option is interpolated as in a configuration file, where a percent sign is written twice.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Brings the database up to a revision, the newest by default; makes a SQLite file that is not there.

    Raises `SchemaOutOfDate` for a newer database and for another program's, and `DatabaseUnavailable` where a step
    fails; neither changes anything in the database.
    """
    make_file(engine)
    schema = examine(engine)
    if schema.state in (SchemaState.FOREIGN, SchemaState.NEWER):
        raise SchemaOutOfDate(describe(schema, engine))
    check_writable(engine)
    write_ahead(engine)
    try:
        command.upgrade(alembic_config(engine), revision)
    except DBAPIError as error:
        if is_unavailable(error):
            raise
        raise damage(error) or _refused_step(error, engine) from error


def _refused_step(error: DBAPIError, engine: Engine) -> DatabaseUnavailable:
    """The complaint about a step that other objects of the database prevent, such as views of its users."""
    reason = " ".join(str(error.orig).split())
    return DatabaseUnavailable(
        f"cannot upgrade the database {database_name(engine.url)}: {reason}; nothing was changed, drop or rename the "
        "object that is in the way, then run: producer db upgrade"
    )


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
