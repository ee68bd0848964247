"""Bytes of tokens: of generated tokens that are parts of characters, which their texts do not tell.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.views import view_definitions

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP VIEW job_tokens")
    op.add_column("token_traces", sa.Column("token_bytes", sa.String(), nullable=True))
    _create_job_tokens(revision)


def downgrade() -> None:
    op.execute("DROP VIEW job_tokens")
    op.execute("ALTER TABLE token_traces DROP COLUMN token_bytes")
    _create_job_tokens(down_revision)


def _create_job_tokens(of_revision: str) -> None:
    """The view has the table's columns as they are when it is made."""
    op.execute(f"CREATE VIEW job_tokens AS {view_definitions(op.get_bind().dialect.name, of_revision)['job_tokens']}")
