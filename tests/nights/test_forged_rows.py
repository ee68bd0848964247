"""Rows of jobs that hold what no producer writes: each fails alone or is decoded, and its neighbors go on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from models.database.outbox import send_outbox
from models.message import ChunkMessage
from models.schema.job import Job
from models.schema.run import Run
from models.states import NUM_PRIORITIES, JobState
from tests.support.table_rows import column_of, insert_run, output_of, release_leases_that_are_over
from worker.celery import chunk_body
from worker.messages.chunk import differences
from worker.storage.job_store import FinishedJob, JobStore

#: Columns of JSON, each with texts that other programs may have written there.
NESTED = "[" * 500 + "]" * 500
FORGED_JSON = {
    "params": ["[]", "null", "5", '"x"', "true", "{}", '{"strategy": 5}', '{"logit_bias": 7}', '{"n": 1e308}'],
    "messages": ['"x"', "5", "[1, 2]", "{}", "null", "[]", '[{"role": 5}]', f'[{{"role": {NESTED}}}]'],
    "chat": ["[]", "5", '"x"', '{"tools": 5}', f'{{"tools": {NESTED}}}'],
}
FORGED_NUMBERS = {"seed": [-1, 2**63 - 1], "priority": [42, -3], "num_crashes": [-5, 10**6]}


def claimed(database: Engine, store: JobStore) -> list[int]:
    """The jobs that a worker claims of all that the outbox sends, none of which it puts aside."""
    chunks: list[ChunkMessage] = []
    send_outbox(database, chunks.append)
    found = []
    for chunk in chunks:
        assert 0 <= chunk.priority < NUM_PRIORITIES
        assert ChunkMessage.model_validate(chunk_body(chunk)).jobs[0].id == chunk.jobs[0].id
        claims = store.claim([job.id for job in chunk.jobs])
        assert not list(differences(chunk, claims, "toy"))
        store.commit([FinishedJob(claim, output_of(claim.job_id)) for claim in claims])
        found += [claim.job_id for claim in claims]
    return found


def check(database: Engine, forged: int, ids: list[int]) -> None:
    neighbors = [job_id for job_id in ids if job_id != forged]
    found = claimed(database, JobStore(database, "worker", 30.0, model="toy"))
    assert set(found) >= set(neighbors)
    (state,), (code,) = (
        column_of(database, Job.state, Job.id == forged),
        column_of(database, Job.error_code, Job.id == forged),
    )
    assert (state, code) in ((JobState.SUCCEEDED, None), (JobState.FAILED, "InvalidRequest"))
    assert column_of(database, Run.finished_at) != [None]


@pytest.mark.parametrize(("column", "value"), [(name, each) for name, values in FORGED_JSON.items() for each in values])
def test_json_of_another_kind_fails_its_job_alone(database: Engine, column: str, value: str) -> None:
    ids = insert_run(database, 5)
    cast = "CAST(:value AS jsonb)" if database.dialect.name == "postgresql" else ":value"
    prompt = ", prompt = NULL" if column == "messages" else ""
    with database.begin() as connection:
        connection.execute(
            text(f"UPDATE jobs SET {column} = {cast}{prompt} WHERE id = :id"), {"value": value, "id": ids[2]}
        )
    check(database, ids[2], ids)


@pytest.mark.parametrize(
    ("column", "value"), [(name, each) for name, values in FORGED_NUMBERS.items() for each in values]
)
def test_a_number_out_of_its_range_keeps_no_job_waiting(database: Engine, column: str, value: Any) -> None:
    ids = insert_run(database, 5)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == ids[2]).values({column: value}))
    check(database, ids[2], ids)


@pytest.mark.parametrize("lease", [None, math.inf, -math.inf, 0.0], ids=str)
def test_a_running_job_whose_lease_is_no_time_is_released(database: Engine, lease: float | None) -> None:
    ids = insert_run(database, 2)
    JobStore(database, "gone", 30.0).claim(ids)
    with database.begin() as connection:
        connection.execute(update(Job).where(Job.id == ids[0]).values(lease_expires_at=lease))
    assert release_leases_that_are_over(database, max_attempts=3) == 1
    assert column_of(database, Job.state) == [JobState.QUEUED, JobState.RUNNING]
