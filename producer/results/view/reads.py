"""The lists of the pages, each by key: the next page costs as much as the first, whatever the table's size."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, func, or_, select

from models.schema.job import Job
from models.schema.result import Result
from models.schema.run import Run
from models.states import JobState
from producer.results.queries import row_by_row
from producer.results.report.measures import prompt_id

RUNS_PER_PAGE = 50
JOBS_PER_PAGE = 100

#: Characters of an answer in a list.
EXCERPT = 240

#: Answers that are looked at for the newest of a run: the index is by id alone.
RECENT_ANSWERS = 1_000

#: Jobs of one prompt on a page; a grid seldom multiplies a line into so many.
MAX_JOBS_OF_PROMPT = 2_000


def run_page(database: Engine, before: tuple[datetime, str] | None) -> list[dict[str, Any]]:
    """The newest runs, or those older than one."""
    statement = select(Run.__table__).order_by(Run.created_at.desc(), Run.id.desc()).limit(RUNS_PER_PAGE)
    if before is not None:
        moment, run_id = before
        is_older = or_(Run.created_at < moment, and_(Run.created_at == moment, Run.id < run_id))
        statement = statement.where(Run.created_at <= moment, is_older)
    with database.connect() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]


def job_page(database: Engine, run_id: str, after: int, state: str | None) -> list[dict[str, Any]]:
    """A run's jobs behind one, in the order of its input, each with the beginning of its first answer."""
    columns = (Job.id, Job.custom_id, Job.state, Job.strategy, Job.grid_point, Job.error, Job.error_code)
    statement = select(*columns).where(Job.run_id == run_id, Job.id > after).order_by(Job.id).limit(JOBS_PER_PAGE)
    if state is not None:
        # Most jobs succeed: as an expression their state is compared in the order of ids, which an index on it has not.
        is_common = state == JobState.SUCCEEDED
        statement = statement.where((func.coalesce(Job.state, "") if is_common else Job.state) == state)
    with database.connect() as connection:
        jobs = [dict(row) for row in connection.execute(statement).mappings()]
        answers = {
            row.job_id: row
            for row in connection.execute(
                select(
                    Result.job_id,
                    func.substr(Result.text, 1, EXCERPT).label("text"),
                    Result.completion_tokens,
                    Result.finish_reason,
                ).where(Result.job_id.in_([job["id"] for job in jobs]), Result.sample_index == 0)
            )
        }
    return [{**job, "answer": answers.get(job["id"])} for job in jobs]


def jobs_of_prompt(database: Engine, run_id: str, job_id: int) -> tuple[str, list[int]] | None:
    """The custom id that a grid's jobs of one prompt have in common, and their ids; None where there is no such job.

    A grid's jobs are inserted side by side.
    """
    columns = select(Job.id, Job.custom_id, Job.grid_point).where(Job.run_id == run_id)
    before = columns.where(Job.id < job_id).order_by(Job.id.desc()).limit(MAX_JOBS_OF_PROMPT // 2)
    behind = columns.where(Job.id > job_id).order_by(Job.id).limit(MAX_JOBS_OF_PROMPT // 2)
    with database.connect() as connection:
        job = connection.execute(columns.where(Job.id == job_id)).first()
        if job is None:
            return None
        if not job.grid_point:
            return job.custom_id, [job_id]
        name = prompt_id(job.custom_id, job.grid_point)
        found = [job_id]
        for neighbors in (before, behind):
            for each in connection.execute(neighbors):
                if not each.grid_point or prompt_id(each.custom_id, each.grid_point) != name:
                    break
                found.append(each.id)
    return name, sorted(found)


def newest_answers(database: Engine, run_id: str, limit: int = 5) -> list[dict[str, Any]]:
    """The run's answers among those that were stored last; none of a run that others have long followed."""
    recent = select(Result.id, Result.job_id).order_by(Result.id.desc()).limit(RECENT_ANSWERS).subquery()
    statement = (
        select(Job.id, Job.custom_id, func.substr(Result.text, 1, EXCERPT).label("text"))
        .select_from(recent)
        .join(Job, Job.id == recent.c.job_id)
        .join(Result, Result.id == recent.c.id)
        .where(row_by_row(Job.run_id) == run_id)
        .order_by(recent.c.id.desc())
        .limit(limit)
    )
    with database.connect() as connection:
        return [dict(row) for row in connection.execute(statement).mappings()]
