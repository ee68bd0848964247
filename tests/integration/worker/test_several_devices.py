"""`worker start --devices cpu,cpu`: two workers share a run, one that dies is started again, all stop together."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from models.database.connection import open_database
from models.schema.job import Job
from models.schema.worker import Worker
from tests.conftest import TOY_MODEL, Producer
from tests.support.processes import CommandProcess, wait_until

#: It takes minutes beside others: `make faults` runs it.
pytestmark = pytest.mark.long

NUM_JOBS = 400


def test_two_workers_share_a_run(producer: Producer, postgres_url: str, broker: str, tmp_path: Path) -> None:
    connection = ["--database", postgres_url, "--broker", broker]
    producer("db", "upgrade", *connection[:2])
    lines = [
        {"custom_id": f"{n}", "prompt": f"Story {n}", "max_new_tokens": 24, "ignore_eos": True} for n in range(NUM_JOBS)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ["start", "--devices", "cpu,cpu", "--name", "pair", "--model", TOY_MODEL, *connection]
    settings = {"NOCTURNE_MAX_NUM_SEQS": "16", "NOCTURNE_HEARTBEAT_SECONDS": "0.2", "NOCTURNE_LEASE_SECONDS": "2"}
    database = open_database(postgres_url)

    def names_of(column: object) -> list[str]:
        with database.connect() as connection:
            return sorted(name for name in connection.execute(select(column).distinct()).scalars() if name)  # type: ignore[call-overload]

    def num_done() -> int:
        with database.connect() as connection:
            statement = select(func.count()).select_from(Job).where(Job.finished_at.is_not(None))
            return connection.execute(statement).scalar_one()

    with CommandProcess("worker", arguments, tmp_path, **settings) as both:
        both.read_in_background()
        wait_until(lambda: sum(" serves " in line for line in both.lines) == 2)
        assert names_of(Worker.name) == ["pair-cpu-0", "pair-cpu-1"]
        producer("submit", "prompts.jsonl", "--model", TOY_MODEL, *connection)
        wait_until(lambda: num_done() > 20)
        first, _ = [child for child in psutil.Process(both.pid).children() if "worker" in child.cmdline()]
        os.kill(first.pid, signal.SIGKILL)
        producer("status", "--watch", *connection[:2])
        wait_until(lambda: len([c for c in psutil.Process(both.pid).children() if c.status() != "zombie"]) == 2)
        both.signal(signal.SIGTERM)
        assert both.finish() == 0
    assert "cpu ended with exit code -9, starting it again" in "".join(both.lines)
    assert names_of(Job.worker) == ["pair-cpu-0", "pair-cpu-1"]
    assert names_of(Job.state) == ["succeeded"]
    database.dispose()
