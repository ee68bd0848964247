"""The supervisor beside engine processes that end as no engine should."""

from __future__ import annotations

import os
import struct
from multiprocessing.connection import Connection
from queue import Queue

import pytest

import worker.supervisor
from models.message import JobMessage
from models.params import GenerationParams
from worker.engine.config import EngineConfig
from worker.engine.protocol import EngineOptions, Ready, Started, Submit
from worker.supervisor import EngineDeath, EngineSupervisor

OPTIONS = EngineOptions("none", "cpu", "float32", EngineConfig())
JOB = JobMessage(id=7, prompt="Hello", messages=None, params=GenerationParams())


def dies_in_the_middle_of_a_message(connection: Connection, options: EngineOptions) -> None:
    connection.send(Ready({}, options.device, 0))
    message = connection.recv()
    if isinstance(message, Submit):
        connection.send(Started((message.jobs[0].id,)))
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"the beginning of a thousand bytes")
        os._exit(9)


def test_a_process_that_dies_in_the_middle_of_a_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.supervisor, "engine_main", dies_in_the_middle_of_a_message)
    deaths: Queue[EngineDeath] = Queue()
    supervisor = EngineSupervisor(OPTIONS, lambda _: None, deaths.put, lambda _: None, timeout=60.0)
    supervisor.start()
    first = supervisor.process_id
    supervisor.submit([JOB], priority=5)
    death = deaths.get(timeout=60)
    assert (death.running, death.waiting) == ([7], [])
    assert "exit code 9" in death.reason
    assert supervisor.process_id != first  # another stands ready
    supervisor.stop()
