"""A released migration keeps its meaning: the schema of each revision is the one stored in `schema_dumps`."""

from __future__ import annotations

import os

from sqlalchemy import Engine

from migrations.upgrade import downgrade, head_revision, upgrade
from tests.support.schema_dump import FOLDER, dump_path, dump_schema

REVISIONS = sorted({path.stem for path in FOLDER.glob("*/*.txt")})


def test_each_revision_makes_the_schema_of_its_dump(empty_database: Engine) -> None:
    """With WRITE_SCHEMA_DUMPS=1 the dump of a revision that has none yet is written."""
    head = head_revision(empty_database)
    assert head is not None
    for revision in [*REVISIONS, head]:
        upgrade(empty_database, revision)
        path = dump_path(empty_database, revision)
        if not path.exists() and os.environ.get("WRITE_SCHEMA_DUMPS"):
            path.write_text(dump_schema(empty_database), encoding="utf-8")
        assert dump_schema(empty_database) == path.read_text(encoding="utf-8"), revision


def test_going_back_leaves_the_schema_of_the_older_revision(database: Engine) -> None:
    for revision in reversed(REVISIONS[:-1]):
        downgrade(database, revision)
        assert dump_schema(database) == dump_path(database, revision).read_text(encoding="utf-8"), revision
