"""A run that is interrupted, interrupted again or killed comes out whole, each job once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Engine, func, select, text

from models.database.connection import open_database
from models.schema.job import Job
from models.schema.run import Run
from models.states import JobState
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import HANG_SECONDS, CommandProcess, wait_until

NUM_JOBS = 300
NUM_TOKENS = 80


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Jobs that keep one thread busy for some seconds."""
    lines = [
        {"custom_id": f"job-{n}", "prompt": f"Story {n}", "max_new_tokens": NUM_TOKENS, "ignore_eos": True,
         "strategy": "sample", "seed": n}
        for n in range(NUM_JOBS)
    ]  # fmt: skip
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def start_run(tmp_path: Path, prompts: Path) -> Callable[[], CommandProcess]:
    def start() -> CommandProcess:
        settings = {"NOCTURNE_NUM_THREADS": "1", "NOCTURNE_MAX_NUM_SEQS": "16", "NOCTURNE_HEARTBEAT_SECONDS": "0.2"}
        return CommandProcess("producer", ["run", prompts, "--model", TOY_MODEL], tmp_path, **settings)

    return start


def num_done(database: Engine) -> int:
    with database.begin() as connection:
        statement = select(func.count()).select_from(Job).where(Job.state == JobState.SUCCEEDED)
        return connection.execute(statement).scalar_one()


def embedded_database(tmp_path: Path) -> Engine:
    path = tmp_path / ".nocturne" / "nocturne.db"
    wait_until(lambda: path.exists() and path.with_name("worker.log").exists())
    return open_database(f"sqlite:///{path}")


def assert_whole(database: Engine) -> None:
    """One run; every job succeeded with one result and all its tokens."""
    with database.begin() as connection:
        (run,) = connection.execute(select(Run.num_jobs, Run.num_succeeded, Run.state, Run.completion_tokens)).all()
        assert tuple(run) == (NUM_JOBS, NUM_JOBS, "finished", NUM_JOBS * NUM_TOKENS)
        counted = connection.execute(
            text("select count(*), count(distinct job_id), count(distinct custom_id) from job_results")
        ).one()
        assert tuple(counted) == (NUM_JOBS, NUM_JOBS, NUM_JOBS)
        traces = connection.execute(text("select count(*) from token_traces")).scalar_one()
        assert traces == NUM_JOBS * NUM_TOKENS
    database.dispose()


def local_processes(tmp_path: Path) -> list[psutil.Process]:
    noted = json.loads((tmp_path / ".nocturne" / "processes.json").read_text())
    return [psutil.Process(pid) for pid, _ in noted if psutil.pid_exists(pid)]


def worker_of(tmp_path: Path) -> psutil.Process:
    (worker,) = [process for process in local_processes(tmp_path) if "worker" in process.cmdline()]
    return worker


def await_more_done(database: Engine, num_before: int = 0) -> None:
    wait_until(lambda: num_done(database) > num_before + 10)


def interrupt(run: CommandProcess, tmp_path: Path) -> None:
    started = local_processes(tmp_path)
    run.signal(signal.SIGINT)
    assert run.finish() == 130
    assert "goes on with the same command, or with: producer resume" in "".join(run.lines)
    assert not any(process.is_running() for process in started)


def kill_everything(run: CommandProcess, tmp_path: Path) -> None:
    """As by a power cut: no process has time to clean up."""
    everything = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    assert {process.pid for process in local_processes(tmp_path)} < {process.pid for process in everything}
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped, none of them sees another one end
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
    run.finish()


def kill_the_producer(run: CommandProcess, tmp_path: Path) -> None:
    worker = worker_of(tmp_path)
    os.kill(run.pid, signal.SIGKILL)
    worker.wait(timeout=HANG_SECONDS)  # it notices that its producer is gone
    run.finish()


def test_interrupted_killed_and_resumed_it_comes_out_whole(
    start_run: Callable[[], CommandProcess], producer: Producer, tmp_path: Path
) -> None:
    done = 0
    for end in (interrupt, kill_everything, kill_the_producer):
        with start_run() as run:
            database = embedded_database(tmp_path)
            await_more_done(database, done)
            end(run, tmp_path)
        if done:
            assert f"going on with run {run_id(database)}: " in "".join(run.lines)
        before, done = done, num_done(database)
        assert before + 10 < done < NUM_JOBS
        database.dispose()
    producer("resume")
    assert_whole(database)


def run_id(database: Engine) -> str:
    with database.begin() as connection:
        return connection.execute(select(Run.id)).scalar_one()
