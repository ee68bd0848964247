"""Conversations as people send them: what reaches the model, and what is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.message import TASK_NAME, ChunkMessage, JobMessage, queue_name
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.result import Result
from models.settings import Settings
from models.states import JobState
from producer.runs.control import requeue
from tests.conftest import TOY_MODEL
from tests.support.processes import WorkerProcess, wait_until
from tests.support.table_rows import RUN_ID, column_of, insert_run
from worker.celery import create_app, queue_length, send_chunk

MESSAGE_OF_0_1 = Path(__file__).parent.parent / "fixtures" / "v0_1" / "message.json"


def test_a_worker_drains_the_queue_of_0_1_and_reads_its_own(broker: str, sqlite_url: str, tmp_path: Path) -> None:
    database = open_database(sqlite_url)
    upgrade(database)
    ids = insert_run(database, 5)
    message: dict[str, Any] = json.loads(MESSAGE_OF_0_1.read_text().replace("@MODEL@", str(TOY_MODEL)))
    assert message["queue"] == queue_name(str(TOY_MODEL), 1) != queue_name(str(TOY_MODEL))
    assert [job["id"] for job in message["args"][0]["jobs"]] == ids[:4]
    app = create_app(Settings(broker=broker))
    app.send_task(TASK_NAME, args=message["args"], queue=message["queue"])
    with database.begin() as connection:
        job = connection.execute(select(Job.__table__).where(Job.id == ids[4])).one()
    assert queue_length(app, str(TOY_MODEL)) == 1
    send_one(app, job)
    assert queue_length(app, str(TOY_MODEL)) == 2
    arguments = ("--model", TOY_MODEL, "--database", sqlite_url, "--broker", broker)
    with WorkerProcess(*arguments, cwd=tmp_path, NOCTURNE_MAX_NUM_SEQS="8"):
        wait_until(lambda: set(column_of(database, Job.state)) == {JobState.SUCCEEDED})
        wait_until(lambda: queue_length(app, str(TOY_MODEL)) == 0)
    hashes = column_of(database, Result.prompt_hash)
    assert len(hashes) == 7 and None not in hashes and len(set(hashes)) == 4  # "x" twice, two and two answers
    database.dispose()


def send_one(app: Any, job: Any) -> None:
    params = GenerationParams.model_validate({**job.params, "seed": job.seed, "max_new_tokens": 2})
    sent = JobMessage(id=job.id, prompt=job.prompt, created_at=job.created_at, params=params)
    send_chunk(app, ChunkMessage(run_id=job.run_id, model=str(TOY_MODEL), jobs=[sent]))


def test_a_retry_is_sent_with_the_time_of_its_submission(database: Engine) -> None:
    """Templates that print the date print it: a retry has the same prompt."""
    submitted = datetime(2024, 5, 17, 23, 59, 58, 123456, tzinfo=UTC)
    insert_run(database, 1, created_at=submitted)
    sent: list[ChunkMessage] = []
    send_outbox(database, sent.append)
    with database.begin() as connection:
        connection.execute(update(Job).values(state=JobState.CANCELLED))
    assert requeue(database, RUN_ID, [JobState.CANCELLED]) == 1
    send_outbox(database, sent.append)
    assert [chunk.jobs[0].created_at for chunk in sent] == [submitted, submitted]
    old = JobMessage(id=1, prompt="x", params=GenerationParams())  # of version 1, which has no time
    assert old.created(submitted).created_at == submitted
