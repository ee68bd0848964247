"""Finished jobs that wait in a worker: it decodes faster than the database stores.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A worker of an earlier version enters its row without it.
    op.add_column("workers", sa.Column("results_held", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.execute("ALTER TABLE workers DROP COLUMN results_held")
