"""The database keeps job states: allowed transitions and events by trigger; crashes, deadlines and content keys.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.views import view_definitions
from models.schema.base import BigId, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TRANSITIONS = [
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("running", "queued"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("succeeded", "queued"),
    ("failed", "queued"),
    ("cancelled", "queued"),
    ("expired", "queued"),
]

EXPIRY = sa.text("state = 'queued' AND expires_at IS NOT NULL")

TRIGGERS = {
    "sqlite": [
        """
        CREATE TRIGGER jobs_transition BEFORE UPDATE OF state ON jobs
        WHEN NEW.state <> OLD.state AND NOT EXISTS (
            SELECT 1 FROM job_transitions WHERE from_state = OLD.state AND to_state = NEW.state)
        BEGIN SELECT RAISE(ABORT, 'a job cannot go from its state to that one; see job_transitions'); END
        """,
        """
        CREATE TRIGGER jobs_event AFTER UPDATE OF state ON jobs WHEN NEW.state <> OLD.state
        BEGIN
            INSERT INTO job_events (job_id, at, worker, from_state, to_state, attempt, reason)
            VALUES (NEW.id, strftime('%Y-%m-%d %H:%M:%f000', 'now'), NEW.worker, OLD.state, NEW.state, NEW.attempts,
                    NEW.state_reason);
        END
        """,
    ],
    "postgresql": [
        """
        CREATE FUNCTION record_job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT EXISTS (SELECT 1 FROM job_transitions WHERE from_state = OLD.state AND to_state = NEW.state) THEN
                RAISE EXCEPTION 'a job cannot go from % to %; see job_transitions', OLD.state, NEW.state
                    USING ERRCODE = 'check_violation';
            END IF;
            INSERT INTO job_events (job_id, at, worker, from_state, to_state, attempt, reason)
            VALUES (NEW.id, clock_timestamp(), NEW.worker, OLD.state, NEW.state, NEW.attempts, NEW.state_reason);
            RETURN NULL;
        END $$
        """,
        """
        CREATE TRIGGER jobs_transition AFTER UPDATE OF state ON jobs FOR EACH ROW
        WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION record_job_transition()
        """,
    ],
}

NO_TRIGGERS = {
    "sqlite": ["DROP TRIGGER jobs_event", "DROP TRIGGER jobs_transition"],
    "postgresql": ["DROP TRIGGER jobs_transition ON jobs", "DROP FUNCTION record_job_transition()"],
}


NEW_COLUMNS_OF_JOBS = ("state_reason", "num_crashes", "error_code", "content_key", "expires_at")


def upgrade() -> None:
    _extend_jobs()
    _create_job_transitions()
    _create_job_events()
    for statement in TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)
    _replace_job_results(revision)


def downgrade() -> None:
    _replace_job_results(down_revision)
    for statement in NO_TRIGGERS[op.get_bind().dialect.name]:
        op.execute(statement)
    op.drop_table("job_events")
    op.drop_table("job_transitions")
    op.drop_index("ix_jobs_expiry", "jobs")
    for name in reversed(NEW_COLUMNS_OF_JOBS):
        op.execute(f"ALTER TABLE jobs DROP COLUMN {name}")


def _extend_jobs() -> None:
    """Plain ALTER TABLE on both: copying the table, as batch mode does, fails on SQLite while views refer to it."""
    op.add_column("jobs", sa.Column("state_reason", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("num_crashes", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("jobs", sa.Column("error_code", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("content_key", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("expires_at", UtcDateTime(), nullable=True))
    op.create_index("ix_jobs_expiry", "jobs", ["expires_at"], sqlite_where=EXPIRY, postgresql_where=EXPIRY)


def _create_job_transitions() -> None:
    """The allowed changes of state, as rows."""
    transitions = op.create_table(
        "job_transitions",
        sa.Column("from_state", sa.String(), nullable=False),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("from_state", "to_state", name=op.f("pk_job_transitions")),
    )
    op.bulk_insert(transitions, [{"from_state": old, "to_state": new} for old, new in TRANSITIONS])


def _create_job_events() -> None:
    """The history of each job; the triggers write it."""
    op.create_table(
        "job_events",
        sa.Column("id", BigId, nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("from_state", sa.String(), nullable=False),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
    )
    op.create_index("ix_job_events_job_id", "job_events", ["job_id"])


def _replace_job_results(of_revision: str) -> None:
    """Makes the view again, as a revision has it."""
    op.execute("DROP VIEW job_results")
    op.execute(f"CREATE VIEW job_results AS {view_definitions(op.get_bind().dialect.name, of_revision)['job_results']}")
