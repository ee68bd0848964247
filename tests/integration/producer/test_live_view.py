"""The moment of a run that the live view shows, on both databases; and the last frame on a terminal."""

from __future__ import annotations

import io
import re
from datetime import datetime, timedelta

import pytest
from rich.console import Console
from sqlalchemy import Engine, select, update

from models.database.clock import read_timestamp
from models.schema.job_event import JobEvent
from models.schema.run import Run
from models.schema.worker import Worker
from models.settings import Settings
from models.states import RunState
from producer.options import OutputOptions
from producer.results.live import observer as observing
from producer.results.live import watch as watching
from producer.results.live.observer import Observer
from producer.results.queries import run_progress
from producer.runs import decoding
from tests.support.table_rows import RUN_ID, insert_run, output_of
from worker.storage.job_store import FinishedJob, JobStore
from worker.storage.registry import Registry


def fill(database: Engine, num_jobs: int = 40) -> datetime:
    """A run with jobs of every kind, and its worker; returns the moment at which the last one ended."""
    job_ids = insert_run(database, num_jobs)
    Registry(database, "local", 30.0).register(host="here", device="cpu", model="toy", max_num_seqs=8)
    store = JobStore(database, "local", 30.0)
    claims = store.claim(job_ids[:30])
    store.commit([FinishedJob(claim, output_of(claim.job_id)) for claim in claims[:20]])
    store.fail(claims[20], "EngineDied", "it\nfell over")
    with database.begin() as connection:  # as if they had ended one a second
        now = read_timestamp(connection)
        ended = select(JobEvent.id).where(JobEvent.from_state == "running").order_by(JobEvent.id)
        for number, event_id in enumerate(connection.execute(ended).scalars().all()):
            at = now - timedelta(seconds=20 - number)
            connection.execute(update(JobEvent).where(JobEvent.id == event_id).values(at=at))
        beat = {"tokens_per_second": 100.0, "num_steps": 10, "mean_running": 6.0}
        connection.execute(update(Worker).values(beat))
        return now


def test_a_moment_of_a_run(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = fill(database)
    monkeypatch.setattr(observing, "read_timestamp", lambda _: now)  # however long this test is kept waiting
    observer = Observer(database, RUN_ID)
    snapshot = observer.look()
    progress = snapshot.progress
    assert (progress.succeeded, progress.failed, progress.running, progress.queued) == (20, 1, 9, 10)
    assert progress.num_final + progress.running + progress.queued == progress.num_jobs
    assert snapshot.seconds_left == pytest.approx(19 * 20 / 21, abs=0.2)
    assert snapshot.newest == ("job-19", "answer 20") and snapshot.errors == (("job-20", "it\nfell over"),)
    assert [(each.name, each.device, each.running) for each in snapshot.workers] == [("local", "cpu", 6.0)]
    with database.begin() as connection:  # 10 more steps of 3 sequences
        connection.execute(update(Worker).values(num_steps=20, mean_running=4.5))
    assert observer.look().workers[0].running == pytest.approx(3.0)
    with database.begin() as connection:
        connection.execute(update(Worker).values(tokens_per_second=0.0))
    assert observer.look().workers[0].running == 0.0


def test_who_is_missing(sqlite_database: Engine) -> None:
    insert_run(sqlite_database, 3)
    assert Observer(sqlite_database, RUN_ID, lambda: True).look().is_loading
    snapshot = Observer(sqlite_database, RUN_ID).look()
    assert not snapshot.is_loading and snapshot.seconds_left is None and snapshot.newest is None


def test_a_worker_that_is_not_heard_of(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for one that is being started, nor for one that has ended in order."""
    fill(database)
    observer = Observer(database, RUN_ID, lambda: True)
    lines, said = watching.PlainLines(observer), list[str]()
    monkeypatch.setattr(watching, "say", said.append)
    assert observer.look().silence is None
    for seconds in (45, 600):
        with database.begin() as connection:
            connection.execute(update(Worker).values(seen_at=read_timestamp(connection) - timedelta(seconds=seconds)))
        snapshot = observer.look()
        assert snapshot.silence == pytest.approx(seconds, abs=20) and not snapshot.is_loading
        lines.look()
    assert [line for line in said if "do not reach the database" in line] == [said[-1]]
    with database.begin() as connection:
        connection.execute(update(Worker).values(stopped_at=read_timestamp(connection)))
    assert observer.look().silence is None


def test_the_last_frame_is_the_summary(sqlite_database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal of 60 columns; what comes after it does not say the same again."""
    fill(sqlite_database, 21)
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=60, height=30, color_system=None)
    said: list[str] = []
    monkeypatch.setattr(watching, "stderr", terminal)
    monkeypatch.setattr(decoding, "say", said.append)

    with sqlite_database.begin() as connection:
        at = connection.execute(select(Run.created_at)).scalar_one() + timedelta(seconds=7)
        connection.execute(update(Run).where(Run.state == RunState.FINISHED).values(finished_at=at))
    progress = watching.watch(sqlite_database, RUN_ID, sleep=lambda _: pytest.fail("it is over"))
    assert progress.state == "finished" and progress == run_progress(sqlite_database, RUN_ID)
    assert len(lines := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue()).splitlines()) >= 5
    assert any(line.startswith(f"run {RUN_ID} · finished · in 0:00:07") for line in lines)
    assert "20 succeeded · 1 failed" in lines and "failed  job-20: it fell over" in lines
    for has_summary in (True, False):
        end = OutputOptions()
        decoding.show_end(sqlite_database, progress, end, Settings(), is_short=True, has_summary=has_summary)
        assert bool(said) is not has_summary
