"""A real worker seen from outside: its metrics say what the database says, and its whole log is JSON."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import func, select

from models.database.connection import open_database
from models.schema.job import Job
from models.schema.result import Result
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import HANG_SECONDS, CommandProcess, free_port, wait_until

NUM_JOBS = 24
PREAMBLE = "One and the same beginning of every prompt of this run, longer than two blocks. " * 2


def samples_of(port: int) -> dict[str, float]:
    """The sum of each series over its labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_SECONDS) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_a_worker_shows_its_work(producer: Producer, broker: str, sqlite_url: str, tmp_path: Path) -> None:
    connection = ["--database", sqlite_url, "--broker", broker]
    producer("db", "upgrade", *connection[:2])
    lines = [{"prompt": f"{PREAMBLE}{n}", "max_new_tokens": 8, "ignore_eos": True} for n in range(NUM_JOBS)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    port = free_port()
    options = ["--log-format", "json", "--log-level", "DEBUG", "--metrics-port", port, "--name", "seen"]
    options += ["--devices", "cpu"]
    with CommandProcess("worker", ["start", *options, "--model", TOY_MODEL, *connection], tmp_path) as worker:
        worker.read_in_background()
        wait_until(lambda: any(" serves " in line for line in worker.lines))
        producer("submit", "prompts.jsonl", "--model", TOY_MODEL, *connection)
        wait_until(lambda: samples_of(port)["nocturne_committed_jobs_total"] == NUM_JOBS)
        # Reports come once a second: one may be of a moment between two jobs.
        wait_until(lambda: samples_of(port)["nocturne_generation_tokens_total"] == 8 * NUM_JOBS)
        wait_until(lambda: samples_of(port)["nocturne_num_requests_running"] == 0)
        samples = samples_of(port)
        worker.signal(signal.SIGTERM)
        assert worker.finish() == 0
    database = open_database(sqlite_url)
    with database.connect() as opened:
        statement = select(func.sum(Result.completion_tokens), func.max(Job.run_id)).join(Job, Job.id == Result.job_id)
        tokens, run_id = opened.execute(statement).one()
    database.dispose()
    assert samples["nocturne_request_success_total"] == NUM_JOBS
    assert samples["nocturne_generation_tokens_total"] == tokens == 8 * NUM_JOBS
    assert samples["nocturne_prefix_cache_hits_total"] > 0
    assert samples["nocturne_jobs_in_flight"] == samples["nocturne_results_held"] == 0
    assert samples["nocturne_kv_cache_usage_perc"] == 0 < samples["nocturne_kv_cache_tokens"]
    assert samples["nocturne_engine_step_duration_seconds_count"] == samples["nocturne_engine_steps_total"] > 8
    assert samples["nocturne_engine_process_resident_memory_bytes"] > 2**20
    assert [line for line in worker.lines if not line.startswith("{")] == []
    logged = [json.loads(line) for line in worker.lines]
    assert all(line["worker"] == "seen" and line["message"] for line in logged)
    about_jobs = {"claimed": set[int](), "stored": set[int]()}
    for line in logged:
        if (kind := line["message"].partition(" jobs are ")[2]) in about_jobs:
            assert line.get("run_id", run_id) == run_id and line.get("run_ids", [run_id]) == [run_id]
            about_jobs[kind] |= {*line.get("job_ids", []), *([line["job_id"]] if "job_id" in line else [])}
    assert about_jobs["claimed"] == about_jobs["stored"] == set(range(1, NUM_JOBS + 1))
