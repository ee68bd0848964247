"""Changes of views between two revisions that take nothing from those who read them.

PostgreSQL replaces a view in place where its columns are only appended: grants stay, and so do views made of it.
"""

from __future__ import annotations

from alembic import op

from migrations.views import view_definitions

#: The roles beside the owner that may read a view; 0 is everyone.
_READERS = """
SELECT DISTINCT acl.grantee, acl.grantee::regrole::text FROM pg_class, aclexplode(relacl) AS acl
WHERE pg_class.oid = to_regclass('job_results') AND acl.privilege_type = 'SELECT' AND acl.grantee <> relowner
"""


def extend_views(before: str, after: str) -> None:
    """Makes the views of a later revision, which readers of the earlier ones may read too."""
    old, new = _definitions(before), _definitions(after)
    changed = [name for name in new if new[name] != old.get(name)]
    if op.get_bind().dialect.name == "sqlite":
        _drop([name for name in changed if name in old])
        _create(changed, new)
        return
    readers = _readers()
    _create(changed, new, "CREATE OR REPLACE VIEW")
    _grant(changed, readers)


def shrink_views(before: str, after: str) -> None:
    """Makes the views of an earlier revision again, with the readers of the later ones."""
    old, new = _definitions(before), _definitions(after)
    changed = [name for name in old if new.get(name) != old[name]]
    readers = _readers() if op.get_bind().dialect.name == "postgresql" else []
    _drop(changed)
    left = [name for name in new if name in changed]
    _create(left, new)
    _grant(left, readers)


def _definitions(revision: str) -> dict[str, str]:
    return view_definitions(op.get_bind().dialect.name, revision)


def _drop(names: list[str]) -> None:
    for name in reversed(names):
        op.execute(f"DROP VIEW {name}")


def _create(names: list[str], definitions: dict[str, str], verb: str = "CREATE VIEW") -> None:
    for name in names:
        op.execute(f"{verb} {name} AS {definitions[name]}")


def _readers() -> list[str]:
    found = op.get_bind().exec_driver_sql(_READERS)
    return ["PUBLIC" if oid == 0 else quoted for oid, quoted in found]


def _grant(names: list[str], readers: list[str]) -> None:
    for reader in readers:
        op.execute(f"GRANT SELECT ON {', '.join(names)} TO {reader}")
