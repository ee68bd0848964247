"""A role of PostgreSQL that may read this schema and do nothing else, for `producer sql` and its kind.

Never a step of the schema's history: managed databases often let nobody make roles.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, ProgrammingError

from models.database.faults import first_line

INSUFFICIENT_PRIVILEGE = "42501"

#: Whether a role exists, and whether it may do more than read: by its attributes, as a member of another, as an owner,
#: by a grant on a relation or a schema of this database.
_RIGHTS = """
SELECT r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
    OR r.rolname IN (current_user, session_user)
    OR EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
    OR EXISTS (SELECT FROM pg_class c WHERE c.relowner = r.oid)
    OR EXISTS (SELECT FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee = r.oid AND a.privilege_type <> 'SELECT')
    OR EXISTS (SELECT FROM pg_namespace n, aclexplode(n.nspacl) a
               WHERE a.grantee = r.oid AND a.privilege_type = 'CREATE')
FROM pg_roles r WHERE r.rolname = %(name)s
"""


class ReaderRefused(Exception):
    """The role cannot be made; the text says why and what to do."""


def make_reader_role(engine: Engine, name: str, password: str) -> None:
    """Makes the role, or gives an existing one a new password and its grants again. Raises `ReaderRefused`."""
    statements: list[str] = []
    try:
        with engine.begin() as connection:
            may_more = connection.exec_driver_sql(_RIGHTS, {"name": name}).scalar()
            if may_more:
                raise ReaderRefused(f"the role {name} exists and may do more than read; give another name")
            statements = _statements(connection, name, is_new=may_more is None)
            connection.exec_driver_sql(statements[0] + f" PASSWORD '{_scrambled(connection, name, password)}'")
            for statement in statements[1:]:
                connection.exec_driver_sql(statement)
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        raise ReaderRefused(
            f"{engine.url.username or 'this user'} may not make roles ({first_line(error.orig)}); let an administrator "
            f"run: {'; '.join(statements)}"
        ) from error
    except DBAPIError as error:
        raise ReaderRefused(f"cannot make the role {name}: {first_line(error.orig)}") from error


def _statements(connection: Connection, name: str, *, is_new: bool) -> list[str]:
    quote = connection.dialect.identifier_preparer.quote_identifier
    role = quote(name)
    found = connection.exec_driver_sql("SELECT current_database(), current_schema()").one()
    database, schema = quote(found[0]), quote(found[1])
    return [
        f"{'CREATE' if is_new else 'ALTER'} ROLE {role} LOGIN",
        f"ALTER ROLE {role} SET default_transaction_read_only = on",
        f"GRANT CONNECT ON DATABASE {database} TO {role}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
        # Tables that a later version makes, by this same owner.
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}",
    ]


def _scrambled(connection: Connection, name: str, password: str) -> str:
    """The password as PostgreSQL stores it, so that no log of statements has the password."""
    driver: Any = connection.connection.driver_connection
    return str(driver.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode())
