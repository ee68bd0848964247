"""The state of a database's schema: empty, of this or another revision, or another program's, and the way out.

Reads the catalog alone, so that it works on a read-only connection, and without Alembic, which takes long to load.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shlex import quote

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.exc import DBAPIError

from migrations.views import view_definitions
from models.database.connection import is_missing
from models.database.faults import DatabaseUnavailable, database_name, is_unavailable, unavailable
from models.schema.tables import Base

#: The tables of every revision.
OWN_TABLES = frozenset({"runs", "jobs", "results", "token_traces", "workers", "environments"})
VERSION_TABLE = "alembic_version"

REVISIONS = tuple(sorted(path.name[:4] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py")))

SQLITE_TABLES = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'"

#: Those of the schemas that a name is looked up in, without what an extension brought.
POSTGRESQL_TABLES = """
SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname::text = ANY (current_schemas(false)::text[])
AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
"""

#: (view, null), and (table, column) of the tables named.
POSTGRESQL_PARTS = """
SELECT relname::text, attname::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped AND relkind <> 'v'
WHERE nspname::text = ANY (current_schemas(false)::text[])
AND (relkind = 'v' OR (relkind IN ('r', 'p', 'f') AND relname::text IN :names))
"""

#: A view, or a table's column.
Part = tuple[str, str | None]


class SchemaOutOfDate(DatabaseUnavailable):
    """The database's schema is not this version's; the text says what to do."""


class SchemaState(StrEnum):
    """The difference between a database's schema and this program's."""

    EMPTY = "empty"
    FOREIGN = "foreign"  # tables that are not ours, or not all of ours
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"


@dataclass(frozen=True)
class Schema:
    """A database's schema: its state, its revision, and tables that show whose it is."""

    state: SchemaState
    revision: str | None = None
    tables: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()  # of its revision's tables, columns and views


def examine(engine: Engine) -> Schema:
    """The schema of the database; writes nothing. Raises `DatabaseUnavailable`."""
    if is_missing(engine):
        return Schema(SchemaState.EMPTY)
    try:
        return _read_schema(engine)
    except DBAPIError as error:
        if is_unavailable(error):
            raise unavailable(error) from error
        raise


def _read_schema(engine: Engine) -> Schema:
    with engine.connect() as connection:
        statement = SQLITE_TABLES if engine.dialect.name == "sqlite" else POSTGRESQL_TABLES
        tables = set(connection.execute(text(statement)).scalars())
        revision = _revision(connection) if VERSION_TABLE in tables and _may_be_ours(tables) else None
        lacking = _lacking(connection) if OWN_TABLES <= tables and revision == REVISIONS[-1] else ()
    if lacking:
        return Schema(SchemaState.FOREIGN, revision, tuple(sorted(tables)), lacking)
    if OWN_TABLES <= tables and revision is not None:
        return Schema(_state_of(revision), revision)
    if tables <= {VERSION_TABLE} and revision is None:
        return Schema(SchemaState.EMPTY)
    return Schema(SchemaState.FOREIGN, revision, tuple(sorted(tables)))


def check_schema(engine: Engine, *, may_be_older: bool = False) -> None:
    """Raises `SchemaOutOfDate` unless the database is at this version's revision, or at an older one where it may."""
    schema = examine(engine)
    if schema.state == SchemaState.CURRENT or (may_be_older and schema.state == SchemaState.OLDER):
        return
    raise SchemaOutOfDate(describe(schema, engine))


def describe(schema: Schema, engine: Engine) -> str:
    """The difference between the database's schema and this program's, with the way out."""
    name, wanted = database_name(engine.url), REVISIONS[-1]
    if schema.state == SchemaState.NEWER:
        return (
            f"the database {name} is at revision {schema.revision}, which is newer than this program ({wanted}); "
            "upgrade Nocturne on this machine"
        )
    if schema.lacking:
        return f"the database {name} is not whole: it lacks {shortened(schema.lacking)}; restore a copy"
    if schema.state == SchemaState.FOREIGN:
        tables = shortened(schema.tables)
        return f"the database {name} is not Nocturne's, or not whole (its tables: {tables}); give another --database"
    found = "is empty" if schema.state == SchemaState.EMPTY else f"is at revision {schema.revision}"
    return f"the database {name} {found}, this program needs {wanted}; run: producer db upgrade{_options(engine)}"


def shortened(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _options(engine: Engine) -> str:
    """The option that names this database to a command; a URL may have a password, which is not repeated."""
    if engine.dialect.name == "sqlite":
        path = (engine.url.database or "").replace("%", "%25").replace("?", "%3F")  # as a URL writes them
        return f" --database {quote(f'sqlite:///{path}')}"
    return ", with the same --database"


def _may_be_ours(tables: Collection[str]) -> bool:
    return OWN_TABLES <= set(tables) or set(tables) == {VERSION_TABLE}


def _revision(connection: Connection) -> str | None:
    """The only revision of the version table; None where it has none or several, or another program's columns."""
    found = connection.execute(text(f"SELECT * FROM {VERSION_TABLE}")).mappings().all()
    return found[0].get("version_num") if len(found) == 1 else None


def _lacking(connection: Connection) -> tuple[str, ...]:
    """The columns of this revision's tables, and its views, that the database does not have."""
    dialect, tables = connection.dialect.name, Base.metadata.tables
    found = _sqlite_parts(connection) if dialect == "sqlite" else _postgresql_parts(connection)
    wanted: set[Part] = {(name, None) for name in view_definitions(dialect)}
    wanted |= {(table.name, column.name) for table in tables.values() for column in table.columns}
    return tuple(sorted(name if column is None else f"{name}.{column}" for name, column in wanted - found))


def _postgresql_parts(connection: Connection) -> set[Part]:
    statement = text(POSTGRESQL_PARTS).bindparams(bindparam("names", sorted(Base.metadata.tables), expanding=True))
    return {(name, column) for name, column in connection.execute(statement)}


def _sqlite_parts(connection: Connection) -> set[Part]:
    kinds = {row.name: row.type for row in connection.execute(text("SELECT name, type FROM sqlite_master"))}
    parts: set[Part] = {(name, None) for name, kind in kinds.items() if kind == "view"}
    for table in Base.metadata.tables:
        if kinds.get(table) == "table":
            parts |= {(table, row[1]) for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")}
    return parts


def _state_of(revision: str) -> SchemaState:
    if revision == REVISIONS[-1]:
        return SchemaState.CURRENT
    return SchemaState.OLDER if revision in REVISIONS else SchemaState.NEWER
