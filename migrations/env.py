"""Alembic's entry point: runs the migrations on the engine that `migrations.upgrade` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine, func, select

from migrations.views import view_definitions
from models.database.connection import limited
from models.database.deadlines import Call
from models.schema.tables import Base

MIGRATION_LOCK = 0x6E6F636D  # "nocm", beside the "noct" of a worker's sweep


def run_migrations(engine: Engine) -> None:
    """Runs the wanted migrations in one transaction; `migrations.upgrade` has told Alembic which.

    One process at a time reads the revision and changes it. On SQLite the transaction itself begins with a lock.
    """
    with limited(engine, Call.MIGRATION).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=engine.dialect.name == "sqlite",  # SQLite alters a table by copying it
            compare_type=True,
            include_name=lambda name, kind, _: not (kind == "table" and name in view_definitions("sqlite")),
        )
        with context.begin_transaction():
            context.run_migrations()


run_migrations(context.config.attributes["engine"])
