"""Alembic's history of the schema, and the functions that upgrade, downgrade, compare and draft."""
