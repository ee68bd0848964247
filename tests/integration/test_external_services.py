"""Redis, PostgreSQL and workers as services of their own, as on several machines."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, TOY_MODEL, Producer
from tests.support.processes import CommandProcess, WorkerProcess

PROMPTS = ROOT / "examples" / "prompts.jsonl"
NUM_PROMPTS = 80


@pytest.fixture
def connection(postgres_url: str, broker: str, producer: Producer) -> Iterator[list[str]]:
    producer("db", "upgrade", "--database", postgres_url)
    yield ["--database", postgres_url, "--broker", broker]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(PROMPTS.read_text().splitlines()[:NUM_PROMPTS]))
    return path


def rows(producer: Producer, connection: list[str], query: str) -> list[dict[str, object]]:
    done = producer("sql", query, "--format", "json", "--as-superuser", *connection[:2])
    return list(json.loads(done.stdout))


def test_submit_work_and_query(producer: Producer, connection: list[str], prompts: Path, tmp_path: Path) -> None:
    run_id = producer("submit", prompts, "--model", TOY_MODEL, "--name", "night", *connection).stdout.strip()
    status = json.loads(producer("status", run_id, "--json", *connection[:2]).stdout)
    assert (status["num_jobs"], status["queued"], status["num_workers"]) == (NUM_PROMPTS, NUM_PROMPTS, 0)
    doctor = producer("doctor", "--model", TOY_MODEL, *connection, exit_code=1).stdout
    assert f"{NUM_PROMPTS} jobs wait: no worker serves {TOY_MODEL}; start one with: worker start" in doctor

    with WorkerProcess("--model", TOY_MODEL, "--name", "w1", *connection, cwd=tmp_path) as worker:
        watched = producer("status", "night", "--watch", *connection[:2])
        assert f"{NUM_PROMPTS} of {NUM_PROMPTS} jobs done" in watched.stderr
        assert "w1" in producer("doctor", "--model", TOY_MODEL, *connection).stdout
        worker.signal(signal.SIGTERM)
        assert worker.finish() == 0

    (row,) = rows(
        producer,
        connection,
        "select count(distinct custom_id) as jobs, count(*) as results, min(worker) as worker, max(attempts) as most, "
        "sum(completion_tokens) as tokens, (select count(*) from token_traces) as traces, "
        "(select completion_tokens from runs) as counted from job_results where state = 'succeeded'",
    )
    assert (row["jobs"], row["worker"], row["most"]) == (NUM_PROMPTS, "w1", 1)
    assert row["tokens"] == row["traces"] == row["counted"]
    records = [json.loads(line) for line in producer("results", run_id, *connection[:2]).stdout.splitlines()]
    assert len(records) == row["results"]
    first = json.loads(prompts.read_text().splitlines()[0])
    assert (records[0]["custom_id"], records[0]["metadata"]) == (first["custom_id"], {"kind": first["kind"]})
    (environment,) = rows(producer, connection, "select model, dtype, device, versions from environments")
    assert environment["model"] == str(TOY_MODEL) and environment["device"] == "cpu"


def test_plain_celery_works_too(producer: Producer, connection: list[str], prompts: Path, tmp_path: Path) -> None:
    database, broker = connection[1], connection[3]
    producer("submit", prompts, "--model", TOY_MODEL, *connection)
    settings = {
        "NOCTURNE_DATABASE": database,
        "NOCTURNE_BROKER": broker,
        "NOCTURNE_MODEL": str(TOY_MODEL),
        "NOCTURNE_NUM_THREADS": "1",
    }
    arguments = ["-A", "worker", "worker", "-P", "threads", "--loglevel", "INFO"]
    with CommandProcess("celery", arguments, tmp_path, **settings) as worker:
        worker.read_until(" ready.")
        producer("status", "--watch", *connection[:2])
        worker.signal(signal.SIGTERM)
        assert worker.finish() == 0
    (row,) = rows(producer, connection, "select num_succeeded, num_jobs from runs")
    assert row["num_succeeded"] == row["num_jobs"] == NUM_PROMPTS


def test_the_message_holds_the_jobs_in_full(
    producer: Producer, connection: list[str], prompts: Path, redis_server: object
) -> None:
    """A message holds all that its jobs' decoding needs; the database is not read for it."""
    import base64

    producer("submit", prompts, "--model", TOY_MODEL, *connection)
    client = redis_server.client()  # type: ignore[attr-defined]
    queues = [key for key in client.keys("generate.*") if client.type(key) == b"list"]
    bodies = [json.loads(message) for queue in queues for message in client.lrange(queue, 0, -1)]
    chunks = [json.loads(base64.b64decode(body["body"]))[0][0] for body in bodies]
    assert all(body["content-type"] == "application/json" for body in bodies)
    jobs = [job for chunk in chunks for job in chunk["jobs"]]
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    assert sorted(job.get("prompt") or json.dumps(job["messages"]) for job in jobs) == sorted(
        line.get("prompt") or json.dumps(line["messages"]) for line in lines
    )
    assert all(job["params"]["seed"] is not None for job in jobs)
    assert {chunk["model"] for chunk in chunks} == {str(TOY_MODEL)}


def test_a_worker_that_cannot_work_says_why(connection: list[str], tmp_path: Path, postgres_server: str) -> None:
    cases = [
        ([*connection, "--model", str(tmp_path)], "the folder is empty"),
        (["--database", postgres_server, "--broker", connection[3], "--model", str(TOY_MODEL)], "producer db upgrade"),
        (["--database", "postgresql://127.0.0.1:1/x", "--model", str(TOY_MODEL)], "cannot use the database"),
    ]
    for arguments, message in cases:
        with CommandProcess("worker", ["start", "--devices", "cpu", *arguments], tmp_path) as worker:
            worker.read_until(message)
            assert worker.finish() == 2
