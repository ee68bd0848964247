"""Chats: the template's arguments beside a job's messages, and the prompt that the model saw.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.views import view_definitions
from models.schema.base import Json

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: Table and column, in the order they came.
NEW_COLUMNS = (("jobs", "chat", Json), ("results", "prompt_hash", sa.String()), ("results", "prompt_text", sa.String()))

VIEW_BEFORE = "0002"  # the last revision that changed `job_results`


def upgrade() -> None:
    for table, column, kind in NEW_COLUMNS:
        op.add_column(table, sa.Column(column, kind, nullable=True))
    _replace_job_results(revision)


def downgrade() -> None:
    _replace_job_results(VIEW_BEFORE)
    for table, column, _ in reversed(NEW_COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")


def _replace_job_results(of_revision: str) -> None:
    """Makes the view again, as a revision has it."""
    op.execute("DROP VIEW job_results")
    op.execute(f"CREATE VIEW job_results AS {view_definitions(op.get_bind().dialect.name, of_revision)['job_results']}")
