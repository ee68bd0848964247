"""An engine process without a model, which dies as its prompts say. Loads no torch, so that it is there at once.

The option `model` is a file that gets a line for each process that starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer

from models.engine_options import EngineOptions
from models.message import JobMessage
from models.states import FinishReason
from worker.engine.request import Completion, RequestOutput
from worker.engine.stats import Stats
from worker.engine_process.protocol import Encoding, Finished, Ready, Started, Stop, Submit

ENVIRONMENT = {
    "model": "fake", "weights_hash": "", "tokenizer_hash": "", "dtype": "float32", "device": "cpu", "attention": "",
    "versions": {},
}  # fmt: skip

ANSWER = Completion(0, (), "", FinishReason.EOS, 0.0)


class InstantEngine:
    """In the place of a supervisor, an engine without a process; it takes its time for prompts that say `slow`."""

    ready = Ready(ENVIRONMENT, "cpu", 0)
    stats = Stats()
    process_id = None

    def __init__(self, options: EngineOptions, on_output: Callable[[RequestOutput], None], *rest: object) -> None:  # noqa: ARG002
        self._on_output = on_output

    def start(self) -> Ready:
        return self.ready

    def submit(self, jobs: Sequence[JobMessage], priority: int) -> None:  # noqa: ARG002
        for job in jobs:
            output = RequestOutput(job.id, 1, (ANSWER,))
            Timer(2.0 if job.prompt == "slow" else 0.0, self._on_output, [output]).start()

    def cancel(self, job_ids: Sequence[int]) -> None:
        """Outputs of jobs that nobody holds are dropped anyway."""

    def stop(self) -> None:
        """It has no process."""


def fake_engine_main(connection: Connection, options: EngineOptions) -> None:
    """Dies of prompts that say `encoding`, `running` or `waiting` where that is the stage; answers all others."""
    with Path(options.model).open("a") as log:
        log.write(f"{os.getpid()}\n")
    if options.model.endswith("hangs"):
        time.sleep(3600)
    connection.send(Ready(ENVIRONMENT, options.device, 0))
    if options.model.endswith("dies-idle"):
        os._exit(4)
    inside: list[JobMessage] = []
    while True:
        while connection.poll(0 if inside else None):
            message = connection.recv()
            if isinstance(message, Stop):
                return
            if isinstance(message, Submit):
                _encode(connection, message)
                inside += message.jobs
        if inside:
            _decode(connection, inside)
            inside = []


def _encode(connection: Connection, message: Submit) -> None:
    for job in message.jobs:
        if job.prompt == "waiting":
            os._exit(1)
        connection.send(Encoding(job.id))
        if job.prompt == "encoding":
            os._exit(2)
        if job.prompt == "hanging":
            time.sleep(3600)
    connection.send(Encoding(None))


def _decode(connection: Connection, jobs: list[JobMessage]) -> None:
    connection.send(Started(tuple(job.id for job in jobs)))
    if any(job.prompt == "running" for job in jobs):
        os._exit(3)
    connection.send(Finished(tuple(RequestOutput(job.id, 1, (ANSWER,)) for job in jobs)))
