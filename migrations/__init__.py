"""Alembic's history of the schema, and the three things that are done with it: upgrade, downgrade, compare."""
