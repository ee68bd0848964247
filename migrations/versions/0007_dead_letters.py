"""Dead letters: messages that no worker takes. Runs that pause, or run a few jobs at once; workers that drain.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.views import view_definitions
from models.schema.base import BigId, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

#: Table, column and type.
NEW_COLUMNS = (
    ("runs", "paused_at", UtcDateTime()),
    ("runs", "max_running", sa.Integer()),
    ("workers", "draining_since", UtcDateTime()),
)


SENT = sa.text("state = 'queued' AND sent_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", BigId, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("job_id", BigId, nullable=True),
        sa.Column("num_bytes", BigId, nullable=False),
        sa.Column("beginning", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
    )
    for table, column, kind in NEW_COLUMNS:
        op.add_column(table, sa.Column(column, kind, nullable=True))
    op.create_index("ix_jobs_sent", "jobs", ["run_id"], sqlite_where=SENT, postgresql_where=SENT)
    _replace_run_summary(revision)


def downgrade() -> None:
    _replace_run_summary(str(down_revision))
    for table, column, _ in reversed(NEW_COLUMNS):
        op.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    op.drop_index("ix_jobs_sent", "jobs")
    op.drop_table("dead_letters")


def _replace_run_summary(of_revision: str) -> None:
    """Makes the view again, as a revision has it."""
    op.execute("DROP VIEW run_summary")
    op.execute(f"CREATE VIEW run_summary AS {view_definitions(op.get_bind().dialect.name, of_revision)['run_summary']}")
