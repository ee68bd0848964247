"""Redis, a database and workers as real processes, and the checks that a run came out whole."""

from __future__ import annotations

import json
import random
import subprocess
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from sqlalchemy import Engine, func, select, text

from migrations.upgrade import upgrade
from models.database.connection import open_database
from models.message import queue_name
from models.model_name import canonical_model
from models.params import GenerationParams
from models.schema.job import Job
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState, RunState
from tests.conftest import TOY_MODEL
from tests.support.processes import HANG_SECONDS, RedisServer, WorkerProcess, run_producer, wait_until
from worker.celery import create_app, queue_length
from worker.engine.engine import Engine as DecodingEngine
from worker.engine.request import Request

#: What a job came to: per sample its text and token ids; beside them its seed.
Answer = tuple[int, tuple[tuple[str, tuple[int, ...]], ...]]

SETTINGS = {
    "NOCTURNE_LEASE_SECONDS": "2",
    "NOCTURNE_MAX_NUM_SEQS": "32",
    "NOCTURNE_VISIBILITY_TIMEOUT": "5",
    "NOCTURNE_GRACE_SECONDS": "0.5",
}


def mixed_jobs(count: int, num_tokens: int = 16) -> list[dict[str, Any]]:
    """Prompt lines of all strategies, each with its seed."""
    rng = random.Random(7)
    strategies: list[dict[str, Any]] = [
        {"strategy": "greedy", "ignore_eos": True},
        {"strategy": "sample", "temperature": 1.5},
        {"strategy": "nucleus", "top_p": 0.9, "n": 2},
        {"strategy": "beam", "num_beams": 3, "num_return": 2},
    ]
    return [
        {
            "custom_id": f"job-{number}",
            "prompt": f"Story {rng.randint(0, 50)} about {rng.choice(['a hedgehog', 'money', 'rain'])}",
            "seed": number,
            "max_new_tokens": rng.randint(num_tokens // 2, num_tokens),
            **strategies[number % len(strategies)],
        }
        for number in range(count)
    ]


def undisturbed(jobs: list[dict[str, Any]]) -> dict[str, Answer]:
    """The answers that an undisturbed run stores: decoded here by an engine of its own."""
    engine = DecodingEngine.load(str(TOY_MODEL), max_num_seqs=64)
    parameters = [
        GenerationParams.model_validate({k: v for k, v in job.items() if k not in ("custom_id", "prompt")})
        for job in jobs
    ]
    requests = [Request(n, engine.encode(job["prompt"]), parameters[n]) for n, job in enumerate(jobs)]
    return {
        jobs[output.request_id]["custom_id"]: (
            jobs[output.request_id]["seed"],
            # The databases keep no NUL.
            tuple((done.text.replace("\0", "\ufffd"), done.token_ids) for done in output.completions),
        )
        for output in engine.generate(requests)
    }


#: For faults that have nothing to do with the database: one of the two is enough.
ON_SQLITE = pytest.mark.parametrize("topology", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("topology", ["postgresql"], indirect=True)


class Topology:
    """Redis and workers around a database. Tests that share one leave it as they found it."""

    def __init__(
        self, folder: Path, database_url: str, model: Path = TOY_MODEL, settings: dict[str, str] | None = None
    ) -> None:
        self.settings = SETTINGS if settings is None else settings
        self.folder = folder
        self.model = model
        self.database_url = database_url
        self.database: Engine = open_database(database_url)
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        self.redis = RedisServer(redis_folder, "--appendonly", "yes", "--appendfsync", "always")
        self.workers: dict[str, WorkerProcess] = {}
        self.worker_module = "worker"
        self.worker_connection: list[str] | None = None  # theirs, where it is not that of the producer

    @property
    def is_sqlite(self) -> bool:
        return self.database.dialect.name == "sqlite"

    @property
    def connection(self) -> list[str]:
        return ["--database", self.database_url, "--broker", self.redis.url]

    def __enter__(self) -> Self:
        upgrade(self.database)
        self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.workers):
            self.drop_worker(name)
        self.redis.stop()
        self.database.dispose()

    def start_worker(
        self, name: str, *, module: str | None = None, is_awaited: bool = True, **settings: str
    ) -> WorkerProcess:
        self.workers[name] = WorkerProcess(
            "--model", self.model, "--name", name, *(self.worker_connection or self.connection),
            cwd=self.folder, module=module or self.worker_module, is_awaited=is_awaited,
            **{**self.settings, **settings},
        )  # fmt: skip
        return self.workers[name]

    def need_workers(self, *names: str) -> list[WorkerProcess]:
        """Starts and stops workers until those of these names run; living ones are kept."""
        for name in list(self.workers):
            if name not in names or self.workers[name].process.poll() is not None:
                self.drop_worker(name)
        new = [self.start_worker(name, is_awaited=False) for name in names if name not in self.workers]
        for worker in new:
            worker.await_ready()
        return [self.workers[name] for name in names]

    def drop_worker(self, name: str) -> None:
        self.workers.pop(name).kill_all()

    def producer(self, *arguments: Any, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        return run_producer(self.folder, *arguments, exit_code=exit_code)

    def write(self, jobs: list[dict[str, Any]]) -> Path:
        path = self.folder / "jobs.jsonl"
        path.write_text("\n".join(map(json.dumps, jobs)))
        return path

    def submit(self, jobs: list[dict[str, Any]], *options: Any) -> str:
        """Submits the jobs as a run; returns its id."""
        arguments = ["submit", self.write(jobs), "--model", self.model, *self.connection, *options]
        return self.producer(*arguments).stdout.strip()

    def num_final(self, run_id: str) -> int:
        with self.database.connect() as connection:
            statement = select(Run.num_succeeded + Run.num_failed + Run.num_cancelled + Run.num_expired)
            return connection.execute(statement.where(Run.id == run_id)).scalar_one()

    def wait_for_some(self, run_id: str, count: int = 20) -> None:
        wait_until(lambda: self.num_final(run_id) >= count)

    def is_finished(self, run_id: str) -> bool:
        with self.database.connect() as connection:
            return connection.execute(select(Run.state).where(Run.id == run_id)).scalar_one() == RunState.FINISHED

    def wait(self, run_id: str, seconds: float = HANG_SECONDS, interval: float = 0.02) -> None:
        try:
            wait_until(lambda: self.is_finished(run_id), seconds, interval)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.describe(run_id)}") from None

    def describe(self, run_id: str) -> str:
        """The states of a run's jobs and the last lines of each worker."""
        with self.database.connect() as connection:
            statement = select(Job.state, Job.state_reason, Job.worker, func.count()).where(Job.run_id == run_id)
            grouped = statement.group_by(Job.state, Job.state_reason, Job.worker)
            lines = [str(tuple(row)) for row in connection.execute(grouped)]
        for name, worker in self.workers.items():
            lines += [f"{name} ({worker.process.poll()}):", *(line.rstrip() for line in worker.lines[-20:])]
        return "\n".join(lines)

    def answers(self, run_id: str) -> dict[str, Answer]:
        """The stored answers of a run, read with SQL."""
        with self.database.connect() as connection:
            tokens: dict[int, list[int]] = defaultdict(list)
            for result_id, token_id in connection.execute(
                text("select result_id, token_id from job_tokens where run_id = :run order by result_id, position"),
                {"run": run_id},
            ):
                tokens[result_id].append(token_id)
            found: dict[str, tuple[int, list[tuple[str, tuple[int, ...]]]]] = {}
            for row in connection.execute(
                text(
                    "select custom_id, seed, result_id, text, completion_tokens from job_results "
                    "where run_id = :run and result_id is not null order by custom_id, sample_index"
                ),
                {"run": run_id},
            ):
                assert len(tokens[row.result_id]) == row.completion_tokens
                found.setdefault(row.custom_id, (row.seed, []))[1].append((row.text, tuple(tokens[row.result_id])))
        return {custom_id: (seed, tuple(samples)) for custom_id, (seed, samples) in found.items()}

    def check(self, run_id: str, expected: dict[str, Answer]) -> None:
        """Every job succeeded once with the undisturbed answer, and nothing is left over anywhere."""
        with self.database.connect() as connection:
            states = dict(
                connection.execute(
                    select(Job.state, func.count()).where(Job.run_id == run_id).group_by(Job.state)
                ).all()
            )
            run = connection.execute(select(Run.num_jobs, Run.num_succeeded).where(Run.id == run_id)).one()
            (num_traces, num_tokens) = connection.execute(
                text(
                    "select (select count(*) from job_tokens where run_id = :run), "
                    "(select sum(completion_tokens) from job_results where run_id = :run)"
                ),
                {"run": run_id},
            ).one()
        assert states == {JobState.SUCCEEDED: len(expected)}
        assert tuple(run) == (len(expected), len(expected))
        assert num_traces == num_tokens
        assert self.answers(run_id) == expected
        self.check_events(run_id)
        self.check_nothing_left()

    def check_events(self, run_id: str) -> None:
        """Each job's events form one chain from queued to its state."""
        chains: dict[int, list[tuple[str, str]]] = defaultdict(list)
        with self.database.connect() as connection:
            for row in connection.execute(
                text(
                    "select job_events.* from job_events join jobs on jobs.id = job_id where run_id = :run "
                    "order by job_events.id"
                ),
                {"run": run_id},
            ):
                chains[row.job_id].append((row.from_state, row.to_state))
        for chain in chains.values():
            assert chain[0][0] == JobState.QUEUED
            assert all(before[1] == after[0] for before, after in zip(chain, chain[1:], strict=False))
            assert [to for _, to in chain].count(JobState.SUCCEEDED) <= 1

    def is_drained(self) -> bool:
        """Whether no message is queued or unacknowledged; needs workers that take the redelivered ones.

        At the default timeout those of killed workers stay unacknowledged for an hour.
        """
        app = create_app(Settings(broker=self.redis.url))
        is_empty = queue_length(app, canonical_model(str(self.model))) == 0
        are_redelivered = "NOCTURNE_VISIBILITY_TIMEOUT" in self.settings
        return is_empty and (not are_redelivered or self.redis.client().hlen("unacked") == 0)

    def check_nothing_left(self) -> None:
        """No message and no lease is left, once the messages of killed workers were redelivered."""
        wait_until(self.is_drained)
        with self.database.connect() as connection:
            running = select(func.count()).select_from(Job).where(Job.state == JobState.RUNNING)
            assert connection.execute(running).scalar_one() == 0

    @property
    def queue(self) -> str:
        return queue_name(canonical_model(str(self.model)))
