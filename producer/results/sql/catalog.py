"""The tables and views of a database: their columns, their SQL, and a line on each of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine

#: The meaning of one row of each table or view.
MEANINGS = {
    "answer_groups": "equal answers to one prompt, and their share",
    "job_results": "an answer with its job and run; start here",
    "job_tokens": "a generated token: its probability, entropy and rank",
    "run_comparison": "an answer in two runs, by custom_id",
    "run_summary": "a run with its counts",
    "sample_agreement": "a prompt and setting sampled several times",
    "token_alternatives": "another token that was likely",
    "alembic_version": "the revision of the schema",
    "dead_letters": "a message that a worker put aside",
    "environments": "a model on a device with its libraries, by which results were decoded",
    "job_events": "a change of a job's state",
    "job_transitions": "an allowed change of state",
    "jobs": "a prompt with its parameters and state",
    "results": "an answer",
    "runs": "a submission",
    "token_traces": "a generated token, without its job",
    "worker_samples": "the load of a worker over ten seconds of its work",
    "workers": "a worker with its device and speed",
}

_TABLES = {
    "sqlite": """
SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'
ORDER BY type DESC, name
""",
    "postgresql": """
SELECT relname, CASE WHEN relkind IN ('v', 'm') THEN 'view' ELSE 'table' END AS kind
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname = current_schema() ORDER BY kind DESC, relname
""",
}

_POSTGRESQL_COLUMNS = """
SELECT relname, attname, format_type(atttypid, atttypmod)
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname = current_schema() AND attnum > 0 AND NOT attisdropped
ORDER BY relname, attnum
"""

_DEFINITIONS = {
    "sqlite": """
SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'
ORDER BY type, name
""",
    "postgresql": """
SELECT relname, CASE WHEN relkind IN ('v', 'm') THEN 'CREATE VIEW ' || quote_ident(relname) || ' AS' || chr(10)
           || rtrim(pg_get_viewdef(pg_class.oid), ';')
       ELSE 'CREATE TABLE ' || quote_ident(relname) || ' (' || chr(10) || (
           SELECT string_agg('    ' || quote_ident(attname) || ' ' || format_type(atttypid, atttypmod)
                      || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, ',' || chr(10) ORDER BY attnum)
           FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
       ) || chr(10) || ')' END
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname = current_schema() ORDER BY relkind, relname
""",
}


def tables(database: Engine) -> list[tuple[str, str, str]]:
    """Name, kind and meaning of each view and table, the views first."""
    return [(name, kind, MEANINGS.get(name, "")) for name, kind in _rows(database, _TABLES)]


def columns(database: Engine) -> dict[str, list[tuple[str, str]]]:
    """Table or view -> its columns, each with its type."""
    found: dict[str, list[tuple[str, str]]] = {}
    with database.connect() as connection:
        if database.dialect.name == "postgresql":
            for table, name, kind in connection.exec_driver_sql(_POSTGRESQL_COLUMNS):
                found.setdefault(table, []).append((name, kind))
            return found
        for table, _ in connection.exec_driver_sql(_TABLES["sqlite"]).all():
            quoted = database.dialect.identifier_preparer.quote_identifier(table)
            described = connection.exec_driver_sql(f"PRAGMA table_info({quoted})").all()
            found[table] = [(name, kind.lower()) for _, name, kind, *_ in described]
    return found


def definitions(database: Engine) -> dict[str, str]:
    """Table or view -> the statement that would make it, the tables first."""
    return {name: f"{definition.strip()};" for name, definition in _rows(database, _DEFINITIONS)}


def _rows(database: Engine, statements: dict[str, str]) -> Sequence[Any]:
    with database.connect() as connection:
        return connection.exec_driver_sql(statements[database.dialect.name]).all()
