"""Cancelling and retrying, as SQL sees it. On both databases."""

from __future__ import annotations

import platform

from sqlalchemy import Engine, event

from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState, RunState
from producer.runs.control import UNSUCCESSFUL, cancel, requeue
from producer.runs.interrupted_jobs import return_interrupted
from tests.support.table_rows import RUN_ID, column_of, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.registry import Registry


def test_a_cancelled_run_ends_and_late_results_change_nothing(database: Engine) -> None:
    job_ids = insert_run(database, 4)
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids[:2])
    store.commit([FinishedJob(claims[0], output_of(job_ids[0]))])
    assert cancel(database, RUN_ID) == (2, 1)
    assert column_of(database, Job.state) == [JobState.SUCCEEDED] + [JobState.CANCELLED] * 3
    assert column_of(database, Run.state) == [RunState.FINISHED]
    assert column_of(database, Run.num_cancelled) == [3]
    assert store.lost(claims[1:]) == claims[1:]
    assert store.commit([FinishedJob(claims[1], output_of(job_ids[1]))]) == 0
    assert cancel(database, RUN_ID) == (0, 0)


def test_some_jobs_are_cancelled_by_name(database: Engine) -> None:
    insert_run(database, 3)
    assert cancel(database, RUN_ID, ["job-1"]) == (1, 0)
    assert column_of(database, Job.state) == [JobState.QUEUED, JobState.CANCELLED, JobState.QUEUED]
    assert column_of(database, Run.state) == [RunState.RUNNING]


def test_jobs_are_locked_in_the_order_of_their_ids(database: Engine) -> None:
    """As every UPDATE of them does, so that no two deadlock."""
    store = JobStore(database, "worker", 30.0)
    store.claim(insert_run(database, 3)[:1])
    updates: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        updates.extend([statement] if statement.startswith("UPDATE jobs") else [])

    event.listen(database, "before_cursor_execute", note)
    return_interrupted(database, RUN_ID, "local")
    cancel(database, RUN_ID)
    assert requeue(database, RUN_ID, UNSUCCESSFUL) == 3
    assert len(updates) == 6 and all("ORDER BY jobs.id" in statement for statement in updates)


def test_jobs_of_other_machines_stay_with_their_workers(database: Engine) -> None:
    """One of the name of this run's own worker has ended, also where its container had another host's name."""
    job_ids = insert_run(database, 4)
    hosts = {"here": platform.node(), "there": "there", "ended": "there", "local": "container"}
    for number, (worker, host) in enumerate(hosts.items()):
        registry = Registry(database, worker, 30.0)
        registry.register(host=host, device="cpu", model="toy", max_num_seqs=8)
        JobStore(database, worker, 30.0).claim([job_ids[number]])
        if worker == "ended":
            registry.sign_off()
    return_interrupted(database, RUN_ID, "local")
    queued, running = JobState.QUEUED, JobState.RUNNING
    assert column_of(database, Job.state) == [queued, running, queued, queued]


def test_a_retry_starts_with_a_clean_record(database: Engine) -> None:
    job_ids = insert_run(database, 3)
    store = JobStore(database, "worker", 30.0)
    claims = store.claim(job_ids[:2])
    store.commit([FinishedJob(claims[0], output_of(job_ids[0]))])
    store.fail(claims[1], "EngineDied", "the engine died")
    cancel(database, RUN_ID)
    assert requeue(database, RUN_ID, UNSUCCESSFUL, ["NaNLogits"]) == 0
    assert requeue(database, RUN_ID, UNSUCCESSFUL, ["EngineDied"]) == 1
    assert column_of(database, Job.state) == [JobState.SUCCEEDED, JobState.QUEUED, JobState.CANCELLED]
    assert column_of(database, Job.error)[1] is column_of(database, Job.error_code)[1] is None
    assert column_of(database, Job.num_crashes) == [0, 0, 0]
    assert column_of(database, Run.num_failed) == [0]
    assert column_of(database, Run.state) == [RunState.RUNNING]
    assert requeue(database, RUN_ID, UNSUCCESSFUL) == 1
    assert column_of(database, Run.num_cancelled) == [0]
    (again, _) = store.claim(job_ids)
    assert again.attempt == 2  # attempts never go back: an old message cannot match a new claim
