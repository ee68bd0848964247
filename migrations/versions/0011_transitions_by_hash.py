"""The transitions of many jobs in one statement are joined by hash.

PL/pgSQL keeps a plan for the session. One made for a statement of a few jobs would compare every row with every other
row in a statement of thousands: the sweep that frees the jobs of lost workers then ended in its timeout, each time.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER FUNCTION record_job_transition() SET enable_nestloop = off")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER FUNCTION record_job_transition() RESET enable_nestloop")
