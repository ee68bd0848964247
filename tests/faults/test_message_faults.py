"""Messages that come twice, in another order, from elsewhere or never; jobs that are poison, cancelled or late."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from models.database.outbox import send_outbox
from models.message import TASK_NAME, ChunkMessage
from models.model_name import canonical_model
from models.schema.job import Job
from models.schema.run import Run
from models.settings import Settings
from models.states import JobState
from tests.conftest import TOY_MODEL
from tests.faults.poison import ALLOCATES, ENDS_WHILE_TOKENIZED, EXITS, HANGS, RAISES
from tests.faults.topology import ON_POSTGRESQL, ON_SQLITE, Answer, Topology
from tests.support.processes import CommandProcess, wait_until
from worker.celery import create_app, send_chunk

Jobs = list[dict[str, Any]]
Expected = dict[str, Answer]


def submit_unsent(topology: Topology, jobs: Jobs) -> str:
    """A run whose jobs are in the outbox."""
    redis = topology.redis.client()
    redis.config_set("maxmemory", 1)
    arguments = ["submit", topology.write(jobs), "--model", TOY_MODEL, *topology.connection]
    run_id = topology.producer(*arguments, exit_code=1).stdout.strip()
    redis.config_set("maxmemory", 0)
    return run_id


@pytest.mark.parametrize("topology", [pytest.param("sqlite", marks=pytest.mark.long), "postgresql"], indirect=True)
def test_every_message_twice_and_in_any_order(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    topology.need_workers("first", "second")
    run_id = submit_unsent(topology, jobs)
    chunks: list[ChunkMessage] = []
    send_outbox(topology.database, chunks.append, run_id=run_id)
    chunks *= 2
    random.Random(1).shuffle(chunks)
    app = create_app(Settings(broker=topology.redis.url))
    for chunk in chunks:
        send_chunk(app, chunk)
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_SQLITE
def test_messages_that_no_worker_can_use(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """Garbage, an unknown job, another version; the jobs of the last one are sent again in ours."""
    (worker,) = topology.need_workers("first")
    app = create_app(Settings(broker=topology.redis.url))
    model = canonical_model(str(TOY_MODEL))
    topology.redis.client().lpush(topology.queue, "garbage")
    send = partial(app.send_task, TASK_NAME, queue=topology.queue)
    send(args=["not a chunk"])
    send(args=[{"version": 1, "run_id": "none", "model": model, "jobs": [{"id": 10**9, "prompt": "x", "params": {}}]}])
    run_id = submit_unsent(topology, jobs)

    def send_in_the_old_way(chunk: ChunkMessage) -> None:
        send(args=[chunk.model_dump(mode="json") | {"version": 0}])

    send_outbox(topology.database, send_in_the_old_way, run_id=run_id)
    topology.wait(run_id)
    topology.check(run_id, expected)
    assert worker.process.poll() is None


TOKENIZED = 666_000

POISON = {
    TOKENIZED: ("EngineDied", "the engine process ended with exit code 7 while the prompt was rendered and tokenized"),
    RAISES: ("EngineDied", "the engine ended with ZeroDivisionError: poison"),
    EXITS: ("EngineDied", "the engine process ended with exit code 9"),
    HANGS: ("EngineDied", "the engine made no step for"),
    ALLOCATES: ("OutOfMemory", "memory ran out with the job alone in the batch"),
}


@ON_POSTGRESQL
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_poison_jobs_fail_alone(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """One raises, two end the process, one hangs, one allocates without end: each gets its error, others succeed."""
    topology.need_workers()
    topology.start_worker(
        "faulty", module="tests.faults.faulty_worker", FAULT="poison", NOCTURNE_MAX_ATTEMPTS="1",
        NOCTURNE_ENGINE_TIMEOUT="15",
    )  # fmt: skip
    neighbors = jobs[:60]
    poison = [{"custom_id": str(seed), "prompt": "x", "seed": seed, "max_new_tokens": 3} for seed in POISON]
    poison[0]["prompt"] = ENDS_WHILE_TOKENIZED
    run_id = topology.submit([*neighbors, *poison])
    topology.wait(run_id, 1200.0)  # ten starts of an engine, half a minute each on a loaded machine
    with topology.database.connect() as connection:
        unsuccessful = select(Job.custom_id, Job.state, Job.error_code, Job.error).where(
            Job.run_id == run_id, Job.state != JobState.SUCCEEDED
        )
        found = {row.custom_id: row for row in connection.execute(unsuccessful)}
    assert found.keys() == set(map(str, POISON))
    for seed, (code, reason) in POISON.items():
        row = found[str(seed)]
        assert (row.state, row.error_code) == (JobState.FAILED, code)
        assert row.error.startswith(reason)
    assert topology.answers(run_id) == {job["custom_id"]: expected[job["custom_id"]] for job in neighbors}
    topology.check_nothing_left()


def states_of(topology: Topology, run_id: str) -> dict[str, int]:
    with topology.database.connect() as connection:
        statement = select(Job.state, func.count()).where(Job.run_id == run_id).group_by(Job.state)
        return dict(connection.execute(statement).all())


@ON_POSTGRESQL
def test_cancelled_in_every_phase(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    long_jobs = [{**job, "max_new_tokens": 1900, "ignore_eos": True, "n": 1, "strategy": "greedy"} for job in jobs]
    for job in long_jobs:
        for name in ("temperature", "top_p", "num_beams", "num_return"):
            job.pop(name, None)

    # While every worker is off: the jobs stay cancelled when their messages arrive.
    topology.need_workers()
    queued = topology.submit(jobs)
    assert (
        f"{len(jobs)} jobs of run {queued} cancelled, 0 of them"
        in topology.producer("cancel", queued, *topology.connection).stderr
    )
    (worker,) = topology.need_workers("first")
    topology.check_nothing_left()
    assert states_of(topology, queued) == {JobState.CANCELLED: len(jobs)}

    # While some run: others take their places at once.
    running = topology.submit(long_jobs)
    wait_until(lambda: states_of(topology, running).get(JobState.RUNNING, 0) > 0)
    engine = worker.engine
    engine.suspend()  # no job ends before it is cancelled
    topology.producer("cancel", running, "job-0", *topology.connection)
    assert states_of(topology, running)[JobState.CANCELLED] == 1
    engine.resume()
    topology.producer("cancel", running, *topology.connection)
    assert set(states_of(topology, running)) <= {JobState.CANCELLED, JobState.SUCCEEDED}
    topology.check_nothing_left()
    with topology.database.connect() as connection:
        assert connection.execute(select(Run.state).where(Run.id == running)).scalar_one() == "finished"

    # Retried, then cancelled after the end: finished jobs stay finished.
    topology.producer("retry", queued, "--cancelled", *topology.connection)
    topology.wait(queued)
    topology.producer("cancel", queued, *topology.connection)
    topology.check(queued, expected)


@pytest.mark.long
@ON_SQLITE
def test_an_urgent_run_overtakes(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    topology.need_workers()
    overnight = topology.submit(jobs, "--priority", "1")
    urgent = topology.submit(jobs[:10], "--priority", "9")
    topology.start_worker("slow", NOCTURNE_MAX_NUM_SEQS="8", NOCTURNE_CONCURRENCY="2")
    topology.wait(urgent)
    topology.wait(overnight)
    assert num_finished_before(topology, overnight, urgent) < 100
    topology.check(overnight, expected)


def num_finished_before(topology: Topology, run_id: str, other: str) -> int:
    """The jobs of a run that were stored before the last job of the other run."""
    last = select(func.max(Job.finished_at)).where(Job.run_id == other).scalar_subquery()
    statement = select(func.count()).select_from(Job).where(Job.run_id == run_id, Job.finished_at < last)
    with topology.database.connect() as connection:
        return connection.execute(statement).scalar_one()


@pytest.mark.long
@ON_POSTGRESQL
def test_late_jobs_expire(topology: Topology, jobs: Jobs, expected: Expected) -> None:
    """A job that did not start in time never runs, even if its message comes later; a retry lifts the deadline."""
    topology.need_workers()
    run_id = topology.submit(jobs, "--expires", "2h")
    with topology.database.begin() as connection:
        statement = update(Job).where(Job.run_id == run_id, Job.custom_id.in_(["job-0", "job-1"]))
        connection.execute(statement.values(expires_at=Job.created_at))
    topology.need_workers("first")
    topology.wait(run_id)
    assert states_of(topology, run_id) == {JobState.SUCCEEDED: len(jobs) - 2, JobState.EXPIRED: 2}
    topology.producer("retry", run_id, "--expired", *topology.connection)
    topology.wait(run_id)
    topology.check(run_id, expected)


@ON_POSTGRESQL
def test_a_database_of_another_schema_is_refused(topology: Topology) -> None:
    with topology.database.begin() as connection:
        current = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    arguments = ["start", "--devices", "cpu", "--model", TOY_MODEL, *topology.connection]
    try:
        with CommandProcess("worker", arguments, topology.folder) as refused:
            assert refused.finish() == 2
    finally:
        with topology.database.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": current})
    assert "run: producer db upgrade" in "".join(refused.lines)
