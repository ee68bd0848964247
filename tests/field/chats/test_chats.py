"""Conversations as people send them: what reaches the model, and what is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, update

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.message import TASK_NAME, ChunkMessage, queue_name
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.result import Result
from models.settings import Settings
from models.states import JobState
from producer.runs.control import cancel, requeue
from tests.conftest import TOY_MODEL
from tests.support.processes import WorkerProcess, wait_until
from tests.support.table_rows import RUN_ID, column_of, insert_run
from worker.celery import create_app, queue_length, send_chunk
from worker.storage.job_store import JobStore

MESSAGE_OF_0_1 = Path(__file__).parent.parent / "fixtures" / "v0_1" / "message.json"


def test_a_worker_drains_the_queue_of_0_1_and_reads_its_own(broker: str, sqlite_url: str, tmp_path: Path) -> None:
    """As in a rolling upgrade: nothing is lost, doubled or put aside, and every row is decoded as it stands."""
    database = open_database(sqlite_url)
    upgrade(database)
    message: dict[str, Any] = json.loads(MESSAGE_OF_0_1.read_text().replace("@MODEL@", str(TOY_MODEL)))
    sent = message["args"][0]["jobs"]
    ids = insert_run(database, 5, run_id=message["args"][0]["run_id"], model=str(TOY_MODEL))
    assert message["queue"] == queue_name(str(TOY_MODEL), 1) != queue_name(str(TOY_MODEL))
    assert [job["id"] for job in sent] == ids[:4]
    with database.begin() as connection:
        for job in sent:  # its rows are those that 0.1 made the message of
            params = {name: value for name, value in job["params"].items() if name != "seed"}
            values = {"prompt": job.get("prompt"), "messages": job.get("messages"), "seed": job["params"]["seed"]}
            connection.execute(update(Job).where(Job.id == job["id"]).values(params=params, **values))
    app = create_app(Settings(broker=broker))
    app.send_task(TASK_NAME, args=message["args"], queue=message["queue"])
    assert queue_length(app, str(TOY_MODEL)) == 1
    chunks: list[ChunkMessage] = []
    send_outbox(database, chunks.append)  # a message of each version for the same jobs
    for chunk in chunks:
        send_chunk(app, chunk)
    assert queue_length(app, str(TOY_MODEL)) == 1 + len(chunks)
    arguments = ("--model", TOY_MODEL, "--database", sqlite_url, "--broker", broker)
    with WorkerProcess(*arguments, cwd=tmp_path, NOCTURNE_MAX_NUM_SEQS="8"):
        wait_until(lambda: set(column_of(database, Job.state)) == {JobState.SUCCEEDED})
        wait_until(lambda: queue_length(app, str(TOY_MODEL)) == 0)
    assert column_of(database, Job.attempts) == [1] * 5
    assert column_of(database, DeadLetter.reason) == []
    hashes = column_of(database, Result.prompt_hash)
    assert len(hashes) == 7 and None not in hashes and len(set(hashes)) == 4  # "x" twice, two and two answers
    database.dispose()


def test_a_retry_is_decoded_with_the_time_of_its_submission(database: Engine) -> None:
    """Templates that print the date print it: a retry has the same prompt, and its row says the time."""
    submitted = datetime(2024, 5, 17, 23, 59, 58, 123456, tzinfo=UTC)
    insert_run(database, 1, created_at=submitted)
    store = JobStore(database, "worker", 30.0)
    ((first,), _) = store.claim([1]), cancel(database, RUN_ID)
    assert requeue(database, RUN_ID, [JobState.CANCELLED]) == 1
    (again,) = store.claim([1])
    assert [first.job.created_at, again.job.created_at] == [submitted, submitted]
