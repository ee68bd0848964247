"""Runs that pause or run a few jobs at once, and workers that drain: kept in the database, by every worker."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update

from migrations.upgrade import upgrade
from models.database.clock import database_timestamp
from models.database.connection import open_database
from models.database.outbox import send_outbox
from models.message import ChunkMessage
from models.schema.dead_letter import DeadLetter
from models.schema.job import Job
from models.schema.job_event import JobEvent
from models.schema.run import Run
from models.schema.worker import Worker
from models.settings import Settings
from models.states import JobState, RunState
from producer.errors import UsageError
from producer.options import OutputOptions
from producer.prompts.grid import Grid
from producer.prompts.job_drafts import Submission
from producer.prompts.validation import check
from producer.results.queries import run_progress, unserved_models
from producer.results.status import show_status
from producer.runs.control import UNSUCCESSFUL, cancel, pause_run, requeue, set_paused, unpause_run
from producer.runs.lifecycle import resume_run
from producer.runs.writer import write
from tests.conftest import Producer
from tests.support.processes import CommandProcess, WorkerProcess, wait_until
from tests.support.table_rows import RUN_ID, column_of, insert_run, output_of
from worker.celery import create_app, send_chunk
from worker.draining import NoSuchWorker, drain
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.reaper import mark_lost_messages_unsent
from worker.storage.registry import Registry, WorkerLoad

MODEL = "toy"


def store_of(database: Engine, name: str = "worker") -> JobStore:
    return JobStore(database, name, 30.0, model=MODEL)


def sent_by(database: Engine, **options: Any) -> list[int]:
    """The ids that one call of the outbox sends."""
    chunks: list[ChunkMessage] = []
    send_outbox(database, chunks.append, **options)
    return [job.id for chunk in chunks for job in chunk.jobs]


def test_a_paused_run_is_neither_sent_nor_claimed_and_goes_on_after(database: Engine) -> None:
    ids, other = insert_run(database, 4), insert_run(database, 1, run_id="other")
    store = store_of(database)
    assert sent_by(database) == [*ids, *other]
    (running,) = store.claim(ids[:1])
    set_paused(database, RUN_ID, is_paused=True)
    set_paused(database, RUN_ID, is_paused=True)  # twice is as once
    assert run_progress(database, RUN_ID).state == "paused"
    assert unserved_models(database) == {MODEL: 1}
    assert [claim.job_id for claim in store.claim([*ids, *other])] == other
    assert mark_lost_messages_unsent(database, MODEL, -1.0) == 0
    assert store.commit([FinishedJob(running, output_of(running.job_id))]) == 1  # what runs ends as ever
    assert sent_by(database) == sent_by(database, run_id=RUN_ID) == []
    with database.begin() as connection:  # as after the loss of a worker
        connection.execute(update(Job).where(Job.id == ids[1]).values(sent_at=None))
    assert sent_by(database) == []
    set_paused(database, RUN_ID, is_paused=False)
    assert sent_by(database) == ids[1:]
    assert [claim.job_id for claim in store.claim(ids)] == ids[1:]


def test_a_pause_ends_with_its_run(database: Engine) -> None:
    """A person who retries its jobs does not think of last night's pause."""
    ids = insert_run(database, 2)
    store = store_of(database)
    store.claim(ids[:1])
    set_paused(database, RUN_ID, is_paused=True)
    assert cancel(database, RUN_ID) == (1, 1)
    assert column_of(database, Run.state) == [RunState.FINISHED] and column_of(database, Run.paused_at) == [None]
    assert requeue(database, RUN_ID, UNSUCCESSFUL) == 2
    assert sent_by(database) == ids and len(store.claim(ids)) == 2


def test_nothing_joins_a_paused_run_in_silence(
    broker: str, sqlite_url: str, toy_model: Path, producer: Producer, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"custom_id": f"{number}", "prompt": "Hi"}))
    at = ("--name", "night", "--model", str(toy_model), "--database", sqlite_url)
    producer("db", "upgrade", "--database", sqlite_url)
    run_id = producer("submit", "0.jsonl", *at, "--broker", broker).stdout.strip()
    database = open_database(sqlite_url)
    set_paused(database, run_id, is_paused=True)
    told = producer("submit", "1.jsonl", *at, "--broker", broker)
    assert told.stdout.strip() == run_id
    assert f"run {run_id} is paused; go on with: producer unpause {run_id}" in told.stderr
    refused = producer("run", "2.jsonl", *at, exit_code=2)
    assert f"run {run_id} has the same name and is paused; go on with: producer unpause {run_id}" in refused.stderr
    assert len(column_of(database, Job.id)) == 2
    database.dispose()


def test_a_paused_run_can_be_cancelled(database: Engine) -> None:
    insert_run(database, 3)
    set_paused(database, RUN_ID, is_paused=True)
    assert cancel(database, RUN_ID) == (3, 0)
    assert run_progress(database, RUN_ID).state == RunState.FINISHED


def limit(database: Engine, most: int, run_id: str = RUN_ID) -> None:
    with database.begin() as connection:
        connection.execute(update(Run).where(Run.id == run_id).values(max_running=most))


def test_no_more_jobs_run_at_once_than_their_run_allows(database: Engine) -> None:
    ids, other = insert_run(database, 8), insert_run(database, 2, run_id="other")
    limit(database, 3)
    first, second = store_of(database, "first"), store_of(database, "second")
    assert sorted(sent_by(database)) == sorted([*ids[:3], *other])
    assert sent_by(database) == []  # three are on their way
    claims = first.claim([*ids[:2], *other])
    assert [claim.job_id for claim in claims] == [*ids[:2], *other]
    assert [claim.is_limited for claim in claims] == [True, True, False, False]
    assert [claim.job_id for claim in second.claim(ids)] == [ids[2]]  # a forged message names them all
    assert column_of(database, Job.sent_at, Job.id.in_(ids[3:])) == [None] * 5
    assert sent_by(database) == []
    first.commit([FinishedJob(claims[0], output_of(claims[0].job_id))])
    assert sent_by(database, min_age_seconds=60.0) == [ids[3]]  # by a worker, whoever submitted it
    assert second.claim([ids[4]]) and not second.claim([ids[3]])
    assert sent_by(database) == []


def test_two_workers_that_claim_at_once_keep_the_bound(database: Engine) -> None:
    ids = insert_run(database, 40)
    limit(database, 5)

    def claim(number: int) -> int:
        return len(store_of(database, f"worker-{number}").claim(ids[number::4]))

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(claim, range(4))) == 5
    assert column_of(database, Job.state).count(JobState.RUNNING) == 5


def test_a_bound_is_stored_with_its_run(database: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"custom_id": f"{n}", "prompt": f"p{n}"}) + "\n" for n in range(3)))
    submission = Submission(path, MODEL, Grid({}), name="n", seed=1)
    write(submission, check(submission), database, max_running=2)
    assert column_of(database, Run.max_running) == [2]
    write(submission, check(submission), database)
    assert column_of(database, Run.max_running) == [2]
    write(submission, check(submission), database, max_running=1)
    assert column_of(database, Run.max_running) == [1]
    assert len(sent_by(database)) == 1


def test_pause_and_unpause_say_where_the_run_stands(
    sqlite_database: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    insert_run(sqlite_database, 3)
    settings = Settings(database=sqlite_database.url.render_as_string())
    with pytest.raises(UsageError, match="is not paused"):
        unpause_run(settings, RUN_ID, as_json=False)
    with pytest.raises(UsageError, match="there is no run 'nobody'"):
        pause_run(settings, "nobody", as_json=False)
    pause_run(settings, RUN_ID, as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"id": RUN_ID, "queued": 3, "running": 0}
    assert f"run {RUN_ID} is paused; go on with: producer unpause {RUN_ID}" in said.err
    show_status(settings, RUN_ID, is_watching=False, as_json=False)
    shown = capsys.readouterr()
    assert f"producer unpause {RUN_ID}" in shown.err
    show_status(settings, RUN_ID, is_watching=False, as_json=True)
    assert json.loads(capsys.readouterr().out)["state"] == "paused"
    with pytest.raises(UsageError, match="is paused"):
        resume_run(settings, RUN_ID, OutputOptions())
    unpause_run(settings, RUN_ID, as_json=False)
    assert "workers find its jobs within a minute" in capsys.readouterr().err
    cancel(sqlite_database, RUN_ID)
    with pytest.raises(UsageError, match="is finished: there is nothing to pause"):
        pause_run(settings, RUN_ID, as_json=False)


def test_drain_names_the_workers_that_there_are(database: Engine) -> None:
    url = database.url.render_as_string(hide_password=False)
    with pytest.raises(NoSuchWorker, match="no worker named a is running; none runs"):
        drain(url, "a", is_awaited=False)
    Registry(database, "b", 30.0).register(host="here", device="cpu", model=MODEL, max_num_seqs=8)
    with pytest.raises(NoSuchWorker, match="those that run: b"):
        drain(url, "a", is_awaited=False)
    assert "b takes no more jobs" in drain(url, "b", is_awaited=False)
    assert Registry(database, "b", 30.0).heartbeat([], WorkerLoad())
    Registry(database, "b", 30.0).register(host="here", device="cpu", model=MODEL, max_num_seqs=8)
    assert not Registry(database, "b", 30.0).heartbeat([], WorkerLoad())  # a new one of the name is not drained


def most_at_once(database: Engine, run_id: str) -> int:
    """The most jobs of a run that ran at the same time, by its events."""
    statement = (
        select(JobEvent.to_state, JobEvent.from_state)
        .join(Job, Job.id == JobEvent.job_id)
        .where(Job.run_id == run_id)
        .order_by(JobEvent.id)
    )
    running = most = 0
    with database.connect() as connection:
        for to_state, from_state in connection.execute(statement):
            running += (to_state == JobState.RUNNING) - (from_state == JobState.RUNNING)
            most = max(most, running)
    return most


def test_workers_pause_keep_a_bound_and_drain(broker: str, sqlite_url: str, tmp_path: Path) -> None:
    """Real workers: a run with a bound ends, beside one that is paused until a worker was drained."""
    database = open_database(sqlite_url)
    upgrade(database)
    bounded = insert_run(database, 60, run_id="bounded")
    insert_run(database, 100, run_id="paused")
    limit(database, 4, "bounded")
    set_paused(database, "paused", is_paused=True)
    app = create_app(Settings(broker=broker, model=MODEL))
    assert send_outbox(database, lambda chunk: send_chunk(app, chunk)) == 4
    arguments = ("--model", MODEL, "--database", sqlite_url, "--broker", broker)
    module = "benchmarks.support.null_worker"
    with (
        WorkerProcess(
            *arguments, "--name", "first", cwd=tmp_path, module=module, is_awaited=False, NULL_TOKENS="1"
        ) as first,
        WorkerProcess(*arguments, "--name", "second", cwd=tmp_path, module=module, NULL_TOKENS="1"),
    ):
        first.await_ready()
        wait_until(lambda: column_of(database, Run.state, Run.id == "bounded") == [RunState.FINISHED])
        assert most_at_once(database, "bounded") <= 4
        assert set(column_of(database, Job.state, Job.run_id == "paused")) == {JobState.QUEUED}
        asked = CommandProcess("worker", ["drain", "first", "--wait", "--database", sqlite_url], tmp_path)
        with asked:
            assert asked.finish() == 0
        assert first.finish() == 0 and "this worker is drained" in "".join(first.lines)
        set_paused(database, "paused", is_paused=False)
        send_outbox(database, lambda chunk: send_chunk(app, chunk))
        wait_until(lambda: column_of(database, Run.state, Run.id == "paused") == [RunState.FINISHED])
    assert set(column_of(database, Job.worker, Job.run_id == "paused")) == {"second"}
    assert column_of(database, Job.attempts) == [1] * (len(bounded) + 100)
    assert column_of(database, DeadLetter.reason) == []
    with database.connect() as connection:
        stopped = select(func.count()).select_from(Worker).where(Worker.name == "first", Worker.stopped_at.is_not(None))
        assert connection.execute(stopped.where(Worker.stopped_at <= database_timestamp())).scalar_one() == 1
    database.dispose()
