"""Views of answers: groups of equal ones, agreement of samples, runs compared; prompt ids and parameters in the others.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

from migrations.view_changes import extend_views, shrink_views

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

#: Every version of PostgreSQL has the cast. A text of too many brackets is not JSON, and must not end the statement.
IS_JSON = """
CREATE FUNCTION is_json(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    PERFORM value::json;
    RETURN true;
EXCEPTION WHEN data_exception OR statement_too_complex THEN
    RETURN false;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(IS_JSON)
        op.execute("GRANT EXECUTE ON FUNCTION is_json(text) TO PUBLIC")
    extend_views(down_revision, revision)


def downgrade() -> None:
    shrink_views(revision, down_revision)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION is_json(text)")
