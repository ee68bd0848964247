"""The schema of a database as text: every table, column, constraint, index, trigger, function and view.

Objects stand in a fixed order with their spaces collapsed, so that two dumps of the same schema are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, text

FOLDER = Path(__file__).parent.parent / "integration" / "database" / "schema_dumps"

SQLITE = """
SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master ORDER BY 1, 2
"""

#: The kinds of objects in a PostgreSQL schema, each as (name, definition).
POSTGRESQL = {
    "column": """
        SELECT c.relname || '.' || a.attname, concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod),
               CASE WHEN a.attnotnull THEN 'NOT NULL' END, 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0
              AND NOT a.attisdropped
        ORDER BY c.relname, a.attnum""",
    "constraint": """
        SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
        ORDER BY 1""",
    "index": """
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1""",
    "sequence": """
        SELECT s.relname,
               concat_ws(' ', format_type(q.seqtypid, NULL), 'OWNED BY', d.refobjid::regclass || '.' || a.attname)
        FROM pg_class s JOIN pg_sequence q ON q.seqrelid = s.oid
        LEFT JOIN pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i')
        LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
        WHERE s.relnamespace = 'public'::regnamespace
        ORDER BY 1""",
    "trigger": """
        SELECT tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        ORDER BY 1""",
    "function": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1""",
    "view": """
        SELECT viewname, definition FROM pg_views WHERE schemaname = 'public' ORDER BY 1""",
}

#: Rows that migrations write.
ROWS = "SELECT from_state, to_state FROM job_transitions ORDER BY 1, 2"


def dump_schema(engine: Engine) -> str:
    """One line for each object, with its spaces collapsed, and the rows that migrations write."""
    with engine.connect() as connection:
        lines = _sqlite_objects(connection) if engine.dialect.name == "sqlite" else _postgresql_objects(connection)
        return "".join(f"{' '.join(line.split())}\n" for line in [*lines, *_rows(connection)])


def _sqlite_objects(connection: Connection) -> Iterator[str]:
    for kind, name, table, definition in connection.execute(text(SQLITE)):
        yield f"{kind} {name} ON {table}: {definition}"


def _postgresql_objects(connection: Connection) -> Iterator[str]:
    for kind, query in POSTGRESQL.items():
        for name, definition in connection.exec_driver_sql(query):
            yield f"{kind} {name}: {definition}"


def _rows(connection: Connection) -> Iterator[str]:
    if connection.dialect.has_table(connection, "job_transitions"):
        for old, new in connection.execute(text(ROWS)):
            yield f"row job_transitions: {old} -> {new}"


def dump_path(engine: Engine, revision: str) -> Path:
    """The stored dump of one revision on one kind of database."""
    return FOLDER / engine.dialect.name / f"{revision}.txt"
