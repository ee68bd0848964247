"""The supervisor of engine processes that end in unusual ways."""

from __future__ import annotations

import os
import struct
import time
from multiprocessing import active_children
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

import worker.engine_process.supervisor
from models.engine_options import EngineOptions
from models.message import JobMessage
from models.params import GenerationParams
from tests.support.fake_engines import fake_engine_main
from tests.support.processes import HANG_SECONDS, wait_until
from worker.engine.request import EngineError, ModelUnavailable, RequestOutput
from worker.engine_process.protocol import Finished, Ready, Started, Stop, Submit
from worker.engine_process.supervisor import EngineDeath, EngineSupervisor

OPTIONS = EngineOptions(model="none", device="cpu", dtype="float32")
JOB = JobMessage(id=7, prompt="Hello", messages=None, params=GenerationParams())


def dies_in_the_middle_of_a_message(connection: Connection, options: EngineOptions) -> None:
    connection.send(Ready({}, options.device, 0))
    message = connection.recv()
    if isinstance(message, Submit):
        connection.send(Started((message.jobs[0].id,)))
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"the beginning of a thousand bytes")
        os._exit(9)


def test_a_process_that_dies_in_the_middle_of_a_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", dies_in_the_middle_of_a_message)
    deaths: Queue[EngineDeath] = Queue()
    supervisor = EngineSupervisor(OPTIONS, lambda _: None, deaths.put, lambda _: None, timeout=HANG_SECONDS)
    supervisor.start()
    first = supervisor.process_id
    supervisor.submit([JOB], priority=5)
    death = deaths.get(timeout=HANG_SECONDS)
    assert (death.running, death.waiting) == ([7], [])
    assert "exit code 9" in death.reason
    assert supervisor.process_id != first  # another is ready
    supervisor.stop()


def answers_the_second_time(connection: Connection, options: EngineOptions) -> None:
    """Dies of job 7; any other job is answered with nothing."""
    connection.send(Ready({}, options.device, 0))
    while not isinstance(message := connection.recv(), Stop):
        if message.jobs[0].id == JOB.id:
            os._exit(9)
        connection.send(Finished((RequestOutput(message.jobs[0].id, 0),)))


class MeanwhileSubmitting(EngineSupervisor):
    """Gets another job and a stop after the first process has died and before the second is ready."""

    stopping: Thread

    def _spawn(self) -> Ready:
        if self.process_id is not None:
            self.submit([JOB.model_copy(update={"id": 8})], priority=5)
            if not self._is_stopping.is_set():
                self.stopping = Thread(target=self.stop)
                self.stopping.start()
        return super()._spawn()


def test_what_comes_while_no_process_runs_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", answers_the_second_time)
    outputs: Queue[RequestOutput] = Queue()
    deaths: Queue[EngineDeath] = Queue()
    supervisor = MeanwhileSubmitting(OPTIONS, outputs.put, deaths.put, lambda _: None, timeout=HANG_SECONDS)
    supervisor.start()
    supervisor.submit([JOB], priority=5)
    assert outputs.get(timeout=HANG_SECONDS).request_id == 8
    assert deaths.get(timeout=HANG_SECONDS).waiting == [7]
    supervisor.stopping.join(timeout=HANG_SECONDS)
    assert not supervisor.stopping.is_alive()


def writes_before_it_reads(connection: Connection, options: EngineOptions) -> None:
    """A busy engine: sends more than a pipe holds before it reads the next jobs."""
    connection.send(Ready({}, options.device, 0))
    first = connection.recv()
    for _ in range(20):
        connection.send(Finished((RequestOutput(0, 0, error=EngineError("x" * 1_000_000)),)))
    second = connection.recv()
    connection.send(Finished(tuple(RequestOutput(each.jobs[0].id, 0) for each in (first, second))))
    connection.recv()


def test_large_jobs_and_large_outputs_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", writes_before_it_reads)
    outputs: Queue[RequestOutput] = Queue()
    supervisor = EngineSupervisor(OPTIONS, outputs.put, lambda _: None, lambda _: None, timeout=HANG_SECONDS)
    supervisor.start()
    supervisor.submit([JOB], priority=5)
    large = JOB.model_copy(update={"id": 8, "prompt": "x" * 5_000_000})
    supervisor.submit([large], priority=5)
    assert {outputs.get(timeout=HANG_SECONDS).request_id for _ in range(2)} == {7, 8}
    supervisor.stop()


def test_a_load_that_stands_still_is_told_of_once_and_killed_where_a_setting_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", fake_engine_main)
    monkeypatch.setattr(worker.engine_process.supervisor, "LOAD_POLL_SECONDS", 0.05)
    monkeypatch.setattr(worker.engine_process.supervisor, "LOAD_NOTICE_SECONDS", 0.2)
    model = str(tmp_path / "hangs")
    options = EngineOptions(model=model, device="cpu")
    supervisor = EngineSupervisor(options, lambda _: None, lambda _: None, lambda _: None, 1.0, load_timeout=1.0)
    with pytest.raises(ModelUnavailable, match=r"the load of '.*hangs' stood still for 1 s"):
        supervisor.start()
    assert len([record for record in caplog.records if "stands still" in record.getMessage()]) == 1
    assert active_children() == []


def answers_after_a_while(connection: Connection, options: EngineOptions) -> None:
    """Dies of job 7; any other job is answered with nothing, after half a second."""
    connection.send(Ready({}, options.device, 0))
    while not isinstance(message := connection.recv(), Stop):
        if message.jobs[0].id == JOB.id:
            os._exit(9)
        time.sleep(0.5)
        connection.send(Finished((RequestOutput(message.jobs[0].id, 0),)))


def test_an_engine_whose_words_wait_for_the_database_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader waits in a callback for longer than an engine may be silent; another job is decoded meanwhile."""
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", answers_after_a_while)
    outputs: Queue[RequestOutput] = Queue()
    deaths: list[EngineDeath] = []

    def database_is_away(death: EngineDeath) -> None:
        deaths.append(death)
        if len(deaths) == 1:
            supervisor.submit([JOB.model_copy(update={"id": 8})], priority=5)
            time.sleep(3.0)

    supervisor = EngineSupervisor(OPTIONS, outputs.put, database_is_away, lambda _: None, timeout=1.0)
    supervisor.start()
    supervisor.submit([JOB], priority=5)
    assert outputs.get(timeout=HANG_SECONDS).request_id == 8
    supervisor.stop()
    assert [death.waiting for death in deaths] == [[7]]


class LoadingForever(EngineSupervisor):
    """The second load never ends."""

    def _spawn(self) -> Ready:
        if self.process_id is not None:
            self._options = self._options.model_copy(update={"model": f"{self._options.model}-hangs"})
        return super()._spawn()


def test_a_worker_that_stops_waits_for_no_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", fake_engine_main)
    monkeypatch.setattr(worker.engine_process.supervisor, "LOAD_POLL_SECONDS", 0.05)
    deaths: Queue[EngineDeath] = Queue()
    lost: list[str] = []
    options = EngineOptions(model=str(tmp_path / "engine"), device="cpu")
    supervisor = LoadingForever(options, lambda _: None, deaths.put, lost.append, timeout=HANG_SECONDS)
    supervisor.start()
    supervisor.submit([JOB.model_copy(update={"prompt": "running"})], priority=5)
    wait_until((tmp_path / "engine-hangs").exists)
    stopping = Thread(target=supervisor.stop, daemon=True)
    stopping.start()
    stopping.join(timeout=10.0)
    assert not stopping.is_alive()
    assert (death := deaths.get(timeout=HANG_SECONDS)).running == [7] and not death.is_replaced
    assert lost == [] and active_children() == []


class WithoutMemory(EngineSupervisor):
    """No second process can be started."""

    def _spawn(self) -> Ready:
        if self.process_id is not None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return super()._spawn()


def test_jobs_are_given_back_where_no_other_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.engine_process.supervisor, "engine_main", dies_in_the_middle_of_a_message)
    deaths: Queue[EngineDeath] = Queue()
    lost: Queue[str] = Queue()
    supervisor = WithoutMemory(OPTIONS, lambda _: None, deaths.put, lost.put, timeout=HANG_SECONDS)
    # A fault in the reader would end this process.
    monkeypatch.setattr(os, "_exit", lambda code: deaths.put(EngineDeath(f"exit code {code}", [], [])))
    supervisor.start()
    supervisor.submit([JOB], priority=5)
    death = deaths.get(timeout=HANG_SECONDS)
    assert death.running == [7] and not death.is_replaced
    assert "temporarily unavailable" in lost.get(timeout=HANG_SECONDS)
