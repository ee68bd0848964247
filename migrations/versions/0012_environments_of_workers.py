"""Workers name their environment: one model served in two types, or from two folders, is told before morning.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A worker of an earlier version enters its row without it.
    op.add_column("workers", sa.Column("environment_id", sa.String(), nullable=True))


def downgrade() -> None:
    op.execute("ALTER TABLE workers DROP COLUMN environment_id")
