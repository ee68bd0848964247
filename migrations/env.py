"""Alembic's entry point: runs the migrations on the engine that `migrations.upgrade` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine

from migrations.views import view_definitions
from models.database.connection import limited
from models.database.deadlines import Call
from models.schema.tables import Base


def run_migrations(engine: Engine) -> None:
    """Runs the wanted migrations in one transaction; `migrations.upgrade` has told Alembic which."""
    with limited(engine, Call.MIGRATION).begin() as connection:
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
