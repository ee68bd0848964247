"""Fast paths: an index in the order of the outbox; on PostgreSQL one trigger call for each statement.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UNSENT = sa.text("state = 'queued' AND sent_at IS NULL")

#: One trigger call for each statement: a worker claims and finishes many jobs in one.
STATEMENT_TRIGGER = [
    "DROP TRIGGER jobs_transition ON jobs",
    """
    CREATE OR REPLACE FUNCTION record_job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        refused record;
    BEGIN
        SELECT was.state AS old_state, becomes.state AS new_state INTO refused
        FROM was JOIN becomes ON becomes.id = was.id
        LEFT JOIN job_transitions AS allowed
            ON allowed.from_state = was.state AND allowed.to_state = becomes.state
        WHERE was.state <> becomes.state AND allowed.from_state IS NULL LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'a job cannot go from % to %; see job_transitions', refused.old_state, refused.new_state
                USING ERRCODE = 'check_violation';
        END IF;
        INSERT INTO job_events (job_id, at, worker, from_state, to_state, attempt, reason)
        SELECT becomes.id, clock_timestamp(), becomes.worker, was.state, becomes.state, becomes.attempts,
               becomes.state_reason
        FROM was JOIN becomes ON becomes.id = was.id
        WHERE was.state <> becomes.state ORDER BY becomes.id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER jobs_transition AFTER UPDATE ON jobs
    REFERENCING OLD TABLE AS was NEW TABLE AS becomes FOR EACH STATEMENT EXECUTE FUNCTION record_job_transition()
    """,
]

#: One trigger call for each row, as revision 0002 has it.
ROW_TRIGGER = [
    "DROP TRIGGER jobs_transition ON jobs",
    """
    CREATE OR REPLACE FUNCTION record_job_transition() RETURNS trigger LANGUAGE plpgsql AS $$
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
]


def upgrade() -> None:
    op.drop_index("ix_jobs_unsent", "jobs")
    op.create_index(
        "ix_jobs_unsent", "jobs", ["priority", "run_id", "id"], sqlite_where=UNSENT, postgresql_where=UNSENT
    )
    op.create_index("ix_jobs_run_id_id", "jobs", ["run_id", "id"])
    if op.get_bind().dialect.name == "postgresql":
        for statement in STATEMENT_TRIGGER:
            op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for statement in ROW_TRIGGER:
            op.execute(statement)
    op.drop_index("ix_jobs_run_id_id", "jobs")
    op.drop_index("ix_jobs_unsent", "jobs")
    op.create_index("ix_jobs_unsent", "jobs", ["run_id"], sqlite_where=UNSENT, postgresql_where=UNSENT)
