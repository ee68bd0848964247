"""The database itself keeps the states: it refuses a forbidden change and records every other one."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import IntegrityError

from models.schema.job import Job
from models.schema.job_event import JobEvent, JobTransition
from models.states import TRANSITIONS, JobState
from tests.support.table_rows import column_of, insert_run


def test_the_table_of_transitions_is_the_one_of_the_code(database: Engine) -> None:
    with database.connect() as connection:
        rows = connection.execute(select(JobTransition.from_state, JobTransition.to_state)).all()
    assert {tuple(row) for row in rows} == {(old, new) for old, allowed in TRANSITIONS.items() for new in allowed}


NUM_MANY = 40_000

PATHS = {  # the states by which a new job comes to each state
    JobState.QUEUED: [],
    JobState.RUNNING: [JobState.RUNNING],
    JobState.SUCCEEDED: [JobState.RUNNING, JobState.SUCCEEDED],
    JobState.FAILED: [JobState.FAILED],
    JobState.CANCELLED: [JobState.CANCELLED],
    JobState.EXPIRED: [JobState.EXPIRED],
}


@pytest.mark.parametrize("old", list(JobState))
def test_only_allowed_changes_go_through(database: Engine, old: JobState) -> None:
    job_ids = insert_run(database, len(JobState))
    for job_id, new in zip(job_ids, JobState, strict=True):
        for state in PATHS[old]:
            change(database, job_id, state)
        if new == old or new in TRANSITIONS[old]:
            change(database, job_id, new)
        else:
            with pytest.raises(IntegrityError, match="a job cannot go from"):
                change(database, job_id, new)
    wanted = [new if new in TRANSITIONS[old] else old for new in JobState]
    assert column_of(database, Job.state) == wanted


def test_each_change_is_an_event(database: Engine) -> None:
    (job_id,) = insert_run(database, 1)
    with database.begin() as connection:
        claimed = {"state": JobState.RUNNING, "worker": "w", "attempts": 1, "state_reason": "claimed"}
        connection.execute(update(Job).values(claimed))
        connection.execute(update(Job).values(lease_expires_at=1.0))  # no change of state: no event
        connection.execute(update(Job).values(state=JobState.SUCCEEDED, state_reason="finished"))
    with database.connect() as connection:
        events = connection.execute(select(JobEvent.__table__).order_by(JobEvent.id)).all()
    assert [(e.job_id, e.worker, e.from_state, e.to_state, e.attempt, e.reason) for e in events] == [
        (job_id, "w", "queued", "running", 1, "claimed"),
        (job_id, "w", "running", "succeeded", 1, "finished"),
    ]
    assert events[0].at <= events[1].at


def change(database: Engine, job_id: int, state: JobState) -> None:
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == job_id).values(state=state))


@pytest.mark.long
@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)  # SQLite's triggers see one row each
def test_a_statement_of_many_jobs_takes_its_time_once(database: Engine) -> None:
    """Its session has learned from statements of one job: every row beside every other would take many minutes."""
    job_ids = insert_run(database, 1)
    with database.begin() as connection:
        others = ", ".join(column.name for column in Job.__table__.columns if column.name not in ("id", "custom_id"))
        connection.execute(
            text(
                f"INSERT INTO jobs (custom_id, {others}) SELECT 'more-' || n, {others} "
                f"FROM jobs, generate_series(1, {NUM_MANY}) AS n"
            )
        )
        connection.execute(text("SET LOCAL statement_timeout = '120s'"))
        for number in range(8):
            state = JobState.RUNNING if number % 2 == 0 else JobState.QUEUED
            connection.execute(update(Job).where(Job.id == job_ids[0]).values(state=state))
        connection.execute(update(Job).where(Job.id > job_ids[0]).values(state=JobState.RUNNING))
    with database.connect() as connection:
        assert connection.execute(text("SELECT count(DISTINCT job_id) FROM job_events")).scalar_one() == NUM_MANY + 1
