"""The condition on an id that it is one of many: they travel as one value, and the statement's text stays the same.

SQLAlchemy, driver and database each keep what they have made of a text; `IN` has another one for each number of ids.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ARRAY, BigInteger, BindParameter, Boolean, ColumnElement, Dialect, Text, and_, bindparam, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine

from models.schema.job import Job, KeepsIndex
from models.states import JobState


class IdList(TypeDecorator[Collection[int]]):
    """Ids as PostgreSQL's array, elsewhere as JSON text."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        is_postgresql = dialect.name == "postgresql"
        return dialect.type_descriptor(ARRAY(BigInteger) if is_postgresql else Text())

    def process_bind_param(self, value: Collection[int] | None, dialect: Dialect) -> Any:
        ids = list(value or ())
        return ids if dialect.name == "postgresql" else json.dumps(ids)


class id_is_among(KeepsIndex, GenericFunction[bool]):
    """Whether the first argument is in the `IdList` that is the second."""

    type = Boolean()
    inherit_cache = True


def is_among(column: InstrumentedAttribute[int], ids: Collection[int] | BindParameter[Any]) -> ColumnElement[bool]:
    """The condition on a column that its value is one of the ids, or of those of a parameter of type `IdList`."""
    return id_is_among(column, ids if isinstance(ids, BindParameter) else bindparam(None, ids, IdList(), unique=True))


def are_named(ids: Collection[int] | BindParameter[Any], state: JobState) -> ColumnElement[bool]:
    """The condition on a job that it is one of these, and in this state.

    No index answers its second half: PostgreSQL would read all jobs of the state until it knows how many there are.
    """
    return and_(is_among(Job.id, ids), func.coalesce(Job.state, "") == state)


@compiles(id_is_among, "postgresql")
def _among_on_postgresql(element: id_is_among, compiler: Any, **options: Any) -> str:
    column, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} = ANY ({ids})"


@compiles(id_is_among, "sqlite")
def _among_on_sqlite(element: id_is_among, compiler: Any, **options: Any) -> str:
    column, ids = (compiler.process(part, **options) for part in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({ids}))"
