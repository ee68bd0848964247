"""The rows that the figures of a run are counted of: few columns, JSON and times as the database has them.

A million rows take some seconds, so nothing is decoded that most rows have in common: the texts of JSON are compared,
and each is decoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Engine, Select, Text, bindparam, cast, func, select, type_coerce

from models.database.faults import driver_errors
from models.schema.job import Job
from models.schema.result import Result
from producer.results.selection import Selection

#: Jobs of one page, which is one transaction.
JOBS_PER_PAGE = 2_000

#: Characters of a JSON text that is remembered with its value.
SHORT_TEXT = 2_000


class FigurePage(NamedTuple):
    """Rows of a run as columns, in the order of its jobs; a job without results has a row of its own."""

    job_id: tuple[int, ...]
    custom_id: tuple[str, ...]
    state: tuple[str, ...]
    strategy: tuple[str, ...]
    prompt: tuple[str | None, ...]
    error: tuple[str | None, ...]
    error_code: tuple[str | None, ...]
    started_at: tuple[Any, ...]  # for `moment_of`
    finished_at: tuple[Any, ...]
    params: tuple[str, ...]  # JSON, as are the next four
    grid_point: tuple[str | None, ...]
    messages: tuple[str | None, ...]
    chat: tuple[str | None, ...]
    metadata: tuple[str | None, ...]
    text: tuple[str | None, ...]  # None, as are the others, without a result
    result_id: tuple[Any, ...]  # int
    completion_tokens: tuple[Any, ...]  # int
    cumulative_logprob: tuple[Any, ...]  # float, in nats
    finish_reason: tuple[Any, ...]  # str
    environment_id: tuple[str | None, ...]


_JSON = (Job.params, Job.grid_point, Job.messages, Job.chat, Job.metadata_)


_METADATA = FigurePage._fields.index("metadata")


def figure_pages(database: Engine, run_id: str, selection: Selection = Selection()) -> Iterator[FigurePage]:
    """The rows of a run's selected jobs in the order of its input, all rows of a job in one page.

    A reader who stops in between holds nothing that a worker's writes would have to wait for.
    """
    state = func.coalesce(Job.state, "")  # as an expression it leaves the order of ids to the index
    statement = _statement(database).where(
        Job.run_id == run_id, Job.id.between(bindparam("after") + 1, bindparam("last"))
    )
    if selection.states:
        statement = statement.where(state.in_(selection.states))
    if selection.strategies:
        statement = statement.where(Job.strategy.in_(selection.strategies))
    for after, last in pairwise(_page_ends(database, run_id)):
        rows = _rows(database, statement, after=after, last=last)
        if selection.metadata:
            rows = [row for row in rows if selection.matches({"metadata": decoded(row[_METADATA])})]
        if rows:
            yield FigurePage(*zip(*rows, strict=True))


def figure_page_of_jobs(database: Engine, job_ids: Sequence[int]) -> FigurePage:
    """The rows of some jobs, at least one."""
    return FigurePage(*zip(*_rows(database, _statement(database).where(Job.id.in_(job_ids))), strict=True))


def _page_ends(database: Engine, run_id: str) -> Iterator[int]:
    """0, and the last id of each page."""
    ids = select(Job.id).where(Job.run_id == run_id, Job.id > bindparam("after")).order_by(Job.id).limit(JOBS_PER_PAGE)
    statement = select(func.max(ids.subquery().c.id))
    last: int | None = 0
    while last is not None:
        yield last
        with database.connect() as connection:
            last = connection.scalar(statement, {"after": last})


def _rows(database: Engine, statement: Select[Any], **values: Any) -> Sequence[tuple[Any, ...]]:
    with database.connect() as connection:
        cursor: Any = connection.execute(statement, values).cursor
        with driver_errors(connection, cursor, "SELECT"):  # SQLAlchemy's rows would take a third of the time
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _statement(database: Engine) -> Select[Any]:
    as_text = cast if database.dialect.name == "postgresql" else type_coerce
    texts: list[ColumnElement[Any]] = [as_text(column, Text).label(column.name) for column in _JSON]
    return (
        select(
            Job.id.label("job_id"), Job.custom_id, Job.state, Job.strategy, Job.prompt, Job.error, Job.error_code,
            _moment(database, Job.started_at), _moment(database, Job.finished_at), *texts,
            Result.text, Result.id.label("result_id"), Result.completion_tokens, Result.cumulative_logprob,
            Result.finish_reason, Result.environment_id,
        )
        .outerjoin(Result, Result.job_id == Job.id)
        .order_by(Job.id, Result.sample_index)
    )  # fmt: skip


def _moment(database: Engine, column: Any) -> ColumnElement[Any]:
    """On SQLite the text of a time, which sorts."""
    return column if database.dialect.name == "postgresql" else type_coerce(column, Text).label(column.key)


def job_begins(job_ids: Sequence[int]) -> list[int]:
    """The numbers of the rows that begin a job, of rows in the order of jobs."""
    return [row for row, (before, job_id) in enumerate(pairwise((None, *job_ids))) if job_id != before]


def moment_of(stored: Any) -> datetime | None:
    """The time of a row."""
    return datetime.fromisoformat(stored).replace(tzinfo=UTC) if isinstance(stored, str) else stored


def decoded(text: str | None) -> Any:
    """The value of a JSON text; it may be shared, and is not to be changed."""
    if text is None:
        return None
    return _remembered(text) if len(text) <= SHORT_TEXT else json.loads(text)


_remembered = lru_cache(4_096)(json.loads)
