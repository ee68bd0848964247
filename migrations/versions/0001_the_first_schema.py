"""The first schema: runs, jobs, results, traces, workers, environments, and the views over them.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.views import view_definitions
from models.schema.base import BigId, Json, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INDEXES_OF_RUNS = ("content_hash", "created_at", "name", "state")
RUNNING = sa.text("state = 'running'")
UNSENT = sa.text("state = 'queued' AND sent_at IS NULL")


def upgrade() -> None:
    _create_environments()
    _create_runs()
    _create_workers()
    _create_jobs()
    _create_results()
    _create_token_traces()
    for name, select in view_definitions(op.get_bind().dialect.name, revision).items():
        op.execute(f"CREATE VIEW {name} AS {select}")


def downgrade() -> None:
    for name in reversed(view_definitions(op.get_bind().dialect.name, revision)):
        op.execute(f"DROP VIEW {name}")
    for table in ("token_traces", "results", "jobs", "workers", "runs", "environments"):
        op.drop_table(table)  # and its indexes


def _create_environments() -> None:
    """Models, devices and libraries that decoded results."""
    op.create_table(
        "environments",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("weights_hash", sa.String(), nullable=False),
        sa.Column("tokenizer_hash", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("attention", sa.String(), nullable=False),
        sa.Column("versions", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environments")),
    )


def _create_runs() -> None:
    """One row for each submission."""
    op.create_table(
        "runs",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("content_hash", sa.String(), nullable=False),
        sa.Column("seed", BigId, nullable=False),
        sa.Column("num_jobs", sa.Integer(), nullable=False),
        sa.Column("num_succeeded", sa.Integer(), nullable=False),
        sa.Column("num_failed", sa.Integer(), nullable=False),
        sa.Column("num_cancelled", sa.Integer(), nullable=False),
        sa.Column("num_expired", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", BigId, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    for column in INDEXES_OF_RUNS:
        op.create_index(op.f(f"ix_runs_{column}"), "runs", [column])


def _create_workers() -> None:
    """One row for each Celery worker."""
    op.create_table(
        "workers",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("max_num_seqs", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("stopped_at", UtcDateTime(), nullable=True),
        sa.Column("tokens_per_second", sa.Double(), nullable=False),
        sa.Column("num_steps", BigId, nullable=False),
        sa.Column("mean_running", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )


def _create_jobs() -> None:
    """One row for each prompt, and the partial indexes that the reaper and the outbox read."""
    op.create_table(
        "jobs",
        sa.Column("id", BigId, nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("custom_id", sa.String(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=True),
        sa.Column("messages", Json, nullable=True),
        sa.Column("strategy", sa.String(), nullable=False),
        sa.Column("params", Json, nullable=False),
        sa.Column("seed", BigId, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("is_suspect", sa.Boolean(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("metadata", Json, nullable=True),
        sa.Column("grid_point", Json, nullable=True),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired')", name=op.f("ck_jobs_state")
        ),
        sa.CheckConstraint("(prompt IS NULL) <> (messages IS NULL)", name=op.f("ck_jobs_prompt_or_messages")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_jobs_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("run_id", "custom_id", name=op.f("uq_jobs_run_id")),
    )
    op.create_index("ix_jobs_lease", "jobs", ["lease_expires_at"], sqlite_where=RUNNING, postgresql_where=RUNNING)
    op.create_index("ix_jobs_run_id_state", "jobs", ["run_id", "state"])
    op.create_index("ix_jobs_unsent", "jobs", ["run_id"], sqlite_where=UNSENT, postgresql_where=UNSENT)


def _create_results() -> None:
    """One row for each returned sequence."""
    op.create_table(
        "results",
        sa.Column("id", BigId, nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("sample_index", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cumulative_logprob", sa.Double(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("hypotheses", Json, nullable=True),
        sa.Column("queued_seconds", sa.Double(), nullable=False),
        sa.Column("prefill_seconds", sa.Double(), nullable=False),
        sa.Column("decode_seconds", sa.Double(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_results_environment_id_environments")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_results_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_results")),
        sa.UniqueConstraint("job_id", "sample_index", name=op.f("uq_results_job_id")),
    )


def _create_token_traces() -> None:
    """One row for each generated token; on SQLite without rowid, so that a sequence's tokens lie together."""
    op.create_table(
        "token_traces",
        sa.Column("result_id", BigId, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("token_id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("logprob", sa.Double(), nullable=False),
        sa.Column("sampling_logprob", sa.Double(), nullable=False),
        sa.Column("entropy", sa.Double(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("kept", sa.Integer(), nullable=False),
        sa.Column("top_logprobs", Json, nullable=True),
        sa.Column("beam", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["result_id"], ["results.id"], name=op.f("fk_token_traces_result_id_results"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("result_id", "position", name=op.f("pk_token_traces")),
        sqlite_with_rowid=False,
    )
