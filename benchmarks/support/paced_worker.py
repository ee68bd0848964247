"""`worker start` with an engine that answers as fast as a GPU would, and notes how long it had to wait for anybody.

`NULL_RATE` tokens a second in answers of `NULL_TOKENS`, each with its trace; 0 answers at once. At its end the engine
writes `waits-<process id>.json`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic, sleep
from unittest.mock import patch

from benchmarks.support.null_worker import ENVIRONMENT, completion_of
from models.engine_options import EngineOptions
from models.entry_point import run_command
from worker.engine.request import RequestOutput
from worker.engine_process.protocol import Finished, Ready, Stop, Submit

#: Seconds between two looks for jobs that are due.
STEP_SECONDS = 0.005


class PacedEngine:
    """The jobs of an engine, and its waits in seconds, without those before its first and after its last job."""

    def __init__(self, connection: Connection, num_tokens: int, rate: float) -> None:
        self._connection = connection
        self._num_tokens = num_tokens
        self._jobs_per_second = rate / num_tokens if rate else 1e9
        self._jobs: deque[int] = deque()
        self.waits = {"for jobs": 0.0, "for its reader": 0.0}
        self.num_tokens = 0

    def run(self) -> None:
        """Answers jobs until it is stopped."""
        due = 0.0  # jobs
        last = monotonic()
        while self._receive():
            now = monotonic()
            due = min(due + (now - last) * self._jobs_per_second, len(self._jobs))
            last = now
            if due >= 1:
                self._answer([self._jobs.popleft() for _ in range(int(due))])
                due -= int(due)
            sleep(STEP_SECONDS if self._jobs else 0)

    def _receive(self) -> bool:
        """Takes jobs in, and waits where it has none; false at its end."""
        while self._connection.poll() or not self._jobs:
            started, is_idle = monotonic(), not self._jobs
            message = self._connection.recv()
            if isinstance(message, Stop):
                return False
            if isinstance(message, Submit):
                self._jobs += [job.id for job in message.jobs]
                self.waits["for jobs"] += (monotonic() - started) * (is_idle and self.num_tokens > 0)
        return True

    def _answer(self, job_ids: list[int]) -> None:
        outputs = tuple(RequestOutput(job_id, 8, (completion_of(self._num_tokens),)) for job_id in job_ids)
        started = monotonic()
        self._connection.send(Finished(outputs))
        self.waits["for its reader"] += monotonic() - started
        self.num_tokens += self._num_tokens * len(job_ids)


def paced_engine_main(connection: Connection, options: EngineOptions) -> None:
    connection.send(Ready(ENVIRONMENT, options.device, 0))
    engine = PacedEngine(connection, int(os.environ["NULL_TOKENS"]), float(os.environ["NULL_RATE"]))
    engine.run()
    path = Path(f"waits-{os.getpid()}.json")
    path.write_text(json.dumps({"tokens": engine.num_tokens, **engine.waits}))


if __name__ == "__main__":
    with patch("worker.engine_process.supervisor.engine_main", paced_engine_main):
        run_command("worker.cli")
