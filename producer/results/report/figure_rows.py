"""The rows that the figures of a run are counted of: few columns, JSON and times as the database has them.

A million rows take some seconds, so nothing is decoded that most rows have in common: the texts of JSON are compared,
and each is decoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Engine, Select, Text, cast, func, select, type_coerce

from models.schema.job import Job
from models.schema.result import Result
from producer.results.selection import Selection

#: Jobs of one page, which is one transaction.
JOBS_PER_PAGE = 2_000

#: Characters of a JSON text that is remembered with its value.
SHORT_TEXT = 2_000

_JSON = (Job.params, Job.grid_point, Job.messages, Job.chat, Job.metadata_)


def figure_rows(database: Engine, run_id: str, selection: Selection = Selection()) -> Iterator[Any]:
    """The rows of a run's selected jobs in the order of its input, a page at a time.

    A reader who stops in between holds nothing that a worker's writes would have to wait for.
    """
    state = func.coalesce(Job.state, "")  # as an expression it leaves the order of ids to the index
    keys = select(Job.id).where(Job.run_id == run_id).order_by(Job.id).limit(JOBS_PER_PAGE)
    last = 0
    while True:
        with database.connect() as connection:
            ids = connection.execute(keys.where(Job.id > last)).scalars().all()
            if not ids:
                return
            of_page = [Job.run_id == run_id, Job.id.between(ids[0], ids[-1])]
            if selection.states:
                of_page.append(state.in_(selection.states))
            if selection.strategies:
                of_page.append(Job.strategy.in_(selection.strategies))
            rows = connection.execute(_statement(database).where(*of_page)).all()
        last = ids[-1]
        if selection.metadata:
            rows = [row for row in rows if selection.matches({"metadata": decoded(row.metadata)})]
        yield from rows


def figure_rows_of_jobs(database: Engine, job_ids: Sequence[int]) -> list[Any]:
    """The rows of some jobs, in their order."""
    with database.connect() as connection:
        return list(connection.execute(_statement(database).where(Job.id.in_(job_ids))))


def _statement(database: Engine) -> Select[Any]:
    as_text = cast if database.dialect.name == "postgresql" else type_coerce
    texts: list[ColumnElement[Any]] = [as_text(column, Text).label(column.name) for column in _JSON]
    return (
        select(
            Job.id.label("job_id"), Job.custom_id, Job.state, Job.strategy, Job.prompt, Job.error, Job.error_code,
            _moment(database, Job.started_at), _moment(database, Job.finished_at), *texts,
            Result.id.label("result_id"), Result.text, Result.completion_tokens, Result.cumulative_logprob,
            Result.finish_reason, Result.environment_id,
        )
        .outerjoin(Result, Result.job_id == Job.id)
        .order_by(Job.id, Result.sample_index)
    )  # fmt: skip


def _moment(database: Engine, column: Any) -> ColumnElement[Any]:
    """On SQLite the text of a time, which sorts."""
    return column if database.dialect.name == "postgresql" else type_coerce(column, Text).label(column.key)


def moment_of(stored: Any) -> datetime | None:
    """The time of a row."""
    return datetime.fromisoformat(stored).replace(tzinfo=UTC) if isinstance(stored, str) else stored


def decoded(text: str | None) -> Any:
    """The value of a JSON text; it may be shared, and is not to be changed."""
    if text is None:
        return None
    return _remembered(text) if len(text) <= SHORT_TEXT else json.loads(text)


_remembered = lru_cache(4_096)(json.loads)
