"""Commands that change one run at the same time as each other, or as its workers: no job is lost, none waits long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, update

from migrations.upgrade import upgrade
from models.database.bulk_insert import insert_rows
from models.database.clock import database_timestamp
from models.database.connection import open_database
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from producer.prompts.validation import check
from producer.runs import prune, writer
from producer.runs.control import cancel, requeue
from producer.runs.writer import write
from tests.support.prompts import prompt_file, submission
from tests.support.table_rows import RUN_ID, column_of, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore

AGE = timedelta(days=30)
SECONDS = 60.0

#: The time that another transaction gets in the middle of one, unless it waits for that.
MEANWHILE = 0.7


def _keep(done: Future[Any], act: Callable[[], Any]) -> None:
    try:
        done.set_result(act())
    except Exception as error:
        done.set_exception(error)


@contextmanager
def another_after(database: Engine, beginning: str, act: Callable[[], Any]) -> Iterator[Future[Any]]:
    """Lets another thread act once, in the middle of a transaction, after its first statement that begins so."""
    done: Future[Any] = Future()
    acting: list[Future[None]] = []
    with ThreadPoolExecutor(1) as threads:

        def act_meanwhile(_: object, __: object, statement: str, *___: object) -> None:
            if statement.startswith(beginning) and not acting:
                acting.append(threads.submit(_keep, done, act))
                time.sleep(MEANWHILE)

        event.listen(database, "after_cursor_execute", act_meanwhile)
        yield done
    event.remove(database, "after_cursor_execute", act_meanwhile)


@pytest.fixture
def old_run(database: Engine) -> list[int]:
    """The ids of jobs that ended long ago: the first one succeeded, the others failed."""
    job_ids = insert_run(database, 4)
    store = JobStore(database, "worker", 30.0)
    first, *others = store.claim(job_ids)
    store.commit([FinishedJob(first, output_of(first.job_id))])
    for claim in others:
        store.fail(claim, "EngineDied", "why")
    with database.begin() as connection:
        connection.execute(update(Run).values(finished_at=database_timestamp(2 * AGE.total_seconds())))
    return job_ids


@pytest.mark.usefixtures("old_run")
def test_a_retry_in_the_middle_of_a_prune_loses_no_job(database: Engine) -> None:
    """It comes before the jobs are deleted, or finds none of them."""
    with another_after(database, "SELECT jobs.id", lambda: requeue(database, RUN_ID, [JobState.FAILED])) as retried:
        prune._prune_run(database, RUN_ID, AGE, traces_only=False)
    assert retried.result(SECONDS) == column_of(database, Job.state).count(JobState.QUEUED) == 0
    assert column_of(database, Run.id) == []


@pytest.mark.usefixtures("old_run")
def test_a_prune_in_the_middle_of_a_retry_deletes_nothing(database: Engine) -> None:
    pruning = another_after(database, "UPDATE jobs", lambda: prune._prune_run(database, RUN_ID, AGE, traces_only=False))
    with pruning as pruned:
        assert requeue(database, RUN_ID, [JobState.FAILED]) == 3
    pruned.result(SECONDS)
    assert column_of(database, Job.state) == [JobState.SUCCEEDED] + [JobState.QUEUED] * 3
    assert column_of(database, Run.state) == [RunState.RUNNING]


def test_a_run_that_has_ended_again_is_not_pruned_on(
    database: Engine, old_run: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new answers are young."""
    monkeypatch.setattr(prune, "JOBS_PER_BATCH", 1)
    stays_old, asked = prune._stays_old, []

    def ended_again(connection: Connection, *arguments: Any) -> bool:
        asked.append(connection)
        if len(asked) == 2:
            connection.execute(update(Run).values(finished_at=database_timestamp()))
        return stays_old(connection, *arguments)

    monkeypatch.setattr(prune, "_stays_old", ended_again)
    prune._prune_run(database, RUN_ID, AGE, traces_only=False)
    assert column_of(database, Job.id) == old_run[1:]
    assert column_of(database, Run.id) == [RUN_ID]


def test_two_retries_of_one_run_do_not_deadlock(database: Engine) -> None:
    """Each changes the failed jobs and the cancelled ones, in two statements."""
    job_ids = insert_run(database, 4)
    store = JobStore(database, "worker", 30.0)
    store.fail(store.claim(job_ids[2:3])[0], "EngineDied", "why")
    cancel(database, RUN_ID, ["job-0"])
    backwards = [JobState.CANCELLED, JobState.FAILED]
    with another_after(database, "UPDATE jobs", lambda: requeue(database, RUN_ID, backwards)) as other:
        first = requeue(database, RUN_ID, backwards[::-1])
    assert first + other.result(SECONDS) == 2
    assert column_of(database, Job.state) == [JobState.QUEUED] * 4
    assert column_of(database, Run.num_failed) == column_of(database, Run.num_cancelled) == [0]


def test_a_submission_with_a_bound_holds_up_no_worker(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs are written for minutes; whoever commits a job of the run counts it in the run's row."""
    database = open_database(postgres_url)
    upgrade(database)
    first = replace(submission(prompt_file(tmp_path, {"custom_id": "a", "prompt": "x"})), name="n")
    write(first, check(first), database)
    store = JobStore(database, "worker", 30.0)
    (claim,) = store.claim(list(column_of(database, Job.id)))
    committed: list[int] = []

    def insert_while_a_worker_commits(*arguments: Any) -> None:
        insert_rows(*arguments)
        with ThreadPoolExecutor(1) as threads:
            commit = threads.submit(store.commit, [FinishedJob(claim, output_of(claim.job_id))])
            committed.append(commit.result(timeout=5.0))

    monkeypatch.setattr(writer, "insert_rows", insert_while_a_worker_commits)
    more = replace(submission(prompt_file(tmp_path, {"custom_id": "b", "prompt": "y"})), name="n")
    write(more, check(more), database, max_running=2)
    assert committed == [1]
    assert column_of(database, Run.max_running) == [2]
    assert column_of(database, Run.state) == [RunState.RUNNING]
    database.dispose()
