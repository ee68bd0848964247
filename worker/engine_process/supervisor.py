"""Keeps one engine process alive: starts it, feeds it, passes its outputs on, restarts it when it dies.

Knows neither SQL nor Celery. Callbacks run on the reader thread.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Event, Lock
from time import monotonic

from models.engine_options import EngineOptions
from models.message import JobMessage
from worker.critical_thread import CriticalThread
from worker.engine.request import ModelUnavailable, RequestOutput, request_error
from worker.engine.stats import Stats
from worker.engine_process.load_progress import LoadProgress, work_of
from worker.engine_process.main import engine_main
from worker.engine_process.protocol import (
    Cancel,
    Crashed,
    Encoding,
    Failed,
    Finished,
    Ready,
    Started,
    Stop,
    Submit,
)

logger = logging.getLogger(__name__)

LOAD_POLL_SECONDS = 1.0

#: A load stands still for so long before the log says so.
LOAD_NOTICE_SECONDS = 300.0

#: Deaths in a row of an engine without any job, after which no other one is started.
MAX_IDLE_DEATHS = 5


@dataclass(frozen=True)
class EngineDeath:
    """The unexpected end of an engine process, and the jobs it had."""

    reason: str
    running: list[int]  # in the batch: one of them may have killed it
    waiting: list[int]
    encoding: int | None = None  # was being rendered and tokenized: it has killed the process
    is_replaced: bool = True  # another process is ready

    @property
    def job_ids(self) -> list[int]:
        return [*([] if self.encoding is None else [self.encoding]), *self.running, *self.waiting]


class EngineSupervisor:
    """Calls `on_output` with each finished request and `on_death` with the jobs lost with a dead process.

    Calls `on_lost` with the reason if no new process can be started. Kills a process that has work and makes no
    step for `timeout` seconds, or whose load stands still for `load_timeout` seconds.
    """

    def __init__(
        self,
        options: EngineOptions,
        on_output: Callable[[RequestOutput], None],
        on_death: Callable[[EngineDeath], None],
        on_lost: Callable[[str], None],
        timeout: float,
        load_timeout: float | None = None,
    ) -> None:
        self._options = options
        self._on_output = on_output
        self._on_death = on_death
        self._on_lost = on_lost
        self._timeout = timeout
        self._load_timeout = load_timeout
        self._last_sign = monotonic()
        self._crash = ""  # the reason of the next death, if it is known beforehand
        self._encoding: int | None = None  # the job that is being rendered and tokenized; the reader's own
        self._is_listening = False  # the reader waits for the engine's next word, and is in no callback
        self._num_idle_deaths = 0  # in a row, without a job in flight
        self._context = multiprocessing.get_context("spawn")
        self._lock = Lock()  # guards the five below
        self._in_flight: set[int] = set()  # the jobs that the engine has
        self._running: set[int] = set()  # those of them that are in the batch
        self._messages: SimpleQueue[object] = SimpleQueue()  # for the current process, or the one that is being started
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None
        self._is_stopping = Event()
        self._reader: CriticalThread | None = None
        self.ready: Ready | None = None
        self.stats = Stats()

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> Ready:
        """Starts the process and returns when its model is loaded. Raises `ModelUnavailable`."""
        ready = self._spawn()
        self._reader = CriticalThread(target=self._read, name="engine-reader", daemon=True)
        self._reader.start()
        CriticalThread(target=self._watch, name="engine-watch", daemon=True).start()
        return ready

    def submit(self, jobs: Sequence[JobMessage], priority: int) -> None:
        """Sends jobs to the engine."""
        with self._lock:
            if not self._in_flight:
                self._last_sign = monotonic()
            self._in_flight.update(job.id for job in jobs)
            self._messages.put(Submit(tuple(jobs), priority))

    def cancel(self, job_ids: Sequence[int]) -> None:
        """Drops jobs; no output of theirs follows."""
        if not job_ids:
            return
        with self._lock:
            self._in_flight.difference_update(job_ids)
            self._running.difference_update(job_ids)
            self._messages.put(Cancel(tuple(job_ids)))

    def stop(self) -> None:
        """Ends the process after the jobs it has; returns when it is gone."""
        self._is_stopping.set()
        with self._lock:
            self._messages.put(Stop())
        if self._reader is not None:
            self._reader.join()

    def _spawn(self) -> Ready:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=engine_main, args=(theirs, self._options), name="nocturne-engine")
        process.start()
        theirs.close()
        try:
            self._await_load(ours, process)
            message = ours.recv()
        except (EOFError, OSError):
            process.join()
            raise ModelUnavailable(
                f"the engine ended while loading {self._options.model!r} (exit code {process.exitcode}); see its log"
            ) from None
        if isinstance(message, Failed):
            process.join()
            raise ModelUnavailable(message.reason)
        assert isinstance(message, Ready)
        with self._lock:
            self._connection, self._process, self.ready = ours, process, message
            CriticalThread(target=self._deliver, args=(self._messages, ours), name="engine-writer", daemon=True).start()
        return message

    def _await_load(self, connection: Connection, process: BaseProcess) -> None:
        """Waits for the process's first word; says once that its load stands still. Raises `ModelUnavailable`."""
        assert process.pid is not None
        progress, is_told = LoadProgress(partial(work_of, process.pid), LOAD_POLL_SECONDS), False
        while not connection.poll(LOAD_POLL_SECONDS):
            if self._is_stopping.is_set() and not self._in_flight:
                process.kill()
                process.join()
                raise ModelUnavailable(f"the load of {self._options.model!r} was for nobody: the worker stops")
            still = progress.seconds_still()
            if self._load_timeout is not None and still >= self._load_timeout:
                process.kill()
                process.join()
                raise ModelUnavailable(f"the load of {self._options.model!r} stood still for {still:.0f} s")
            if still >= LOAD_NOTICE_SECONDS and not is_told:
                is_told = True
                logger.warning(
                    "the load of %r stands still: for %.0f s process %d has neither computed nor read; look at the "
                    "disk or the network that it loads from (--load-timeout ends such a load)",
                    self._options.model, still, process.pid,
                )  # fmt: skip

    def _read(self) -> None:
        while True:
            assert self._connection is not None and self._process is not None
            try:
                self._is_listening = True
                message = self._connection.recv()
            except (EOFError, OSError):  # OSError: it was killed in the middle of a message
                self._is_listening = False
                if not self._restart():
                    return
                continue
            self._is_listening = False
            self._last_sign = monotonic()
            if isinstance(message, Finished):
                self._pass_on(message.outputs)
            elif isinstance(message, Started):
                with self._lock:
                    self._running.update(self._in_flight.intersection(message.job_ids))
            elif isinstance(message, Encoding):
                self._encoding = message.job_id
            elif isinstance(message, Stats):
                self.stats = message
            elif isinstance(message, Crashed):
                self._crash = message.reason

    def _watch(self) -> None:
        """Kills a process that has work and makes no step; the reader then sees its end.

        Silence is counted in turns of this loop: the clock goes on while worker and engine are both suspended. What
        comes while the reader waits for the database, in a callback, is unread, and not silence.
        """
        interval, silence, last_sign = min(1.0, self._timeout / 4), 0.0, 0.0
        while not self._is_stopping.wait(interval):
            with self._lock:
                is_busy = self._connection is not None and bool(self._in_flight) and self._is_listening
                if self._process is None or not is_busy or last_sign != self._last_sign:
                    silence, last_sign = 0.0, self._last_sign
                    continue
                silence += interval
                if silence < self._timeout:
                    continue
                self._crash = self._crash or f"the engine made no step for {silence:.0f} s"
                self._process.kill()

    def _pass_on(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            with self._lock:
                is_expected = output.request_id in self._in_flight
                self._in_flight.discard(output.request_id)
                self._running.discard(output.request_id)
            if is_expected:
                self._num_idle_deaths = 0
                self._on_output(output)

    def _restart(self) -> bool:
        """Reports the jobs that died with the engine and starts another; false if none is to run any more."""
        death = self._end_of_process()
        if self._is_stopping.is_set():
            if death.job_ids:
                self._on_death(replace(death, is_replaced=False))
            return False
        self._num_idle_deaths = 0 if death.job_ids else self._num_idle_deaths + 1
        try:
            if self._num_idle_deaths >= MAX_IDLE_DEATHS:
                raise ModelUnavailable(f"it died {MAX_IDLE_DEATHS} times without a job: {death.reason}")
            self._spawn()  # the new process must be ready before the jobs are retried
        except (ModelUnavailable, OSError) as error:  # OSError: no memory or number for another process
            self._on_death(replace(death, is_replaced=False))
            if not self._is_stopping.is_set():
                self._on_lost(str(error))
            return False
        self._last_sign = monotonic()
        self._on_death(death)
        return True

    def _end_of_process(self) -> EngineDeath:
        """Waits for the end of the process; the jobs it had are no longer in flight."""
        assert self._process is not None
        self._process.join()
        reason = self._crash or f"the engine process ended with exit code {self._process.exitcode}"
        if self._encoding is not None:
            reason += " while the prompt was rendered and tokenized"
        with self._lock:
            others = self._in_flight - {self._encoding}
            death = EngineDeath(reason, sorted(others & self._running), sorted(others - self._running), self._encoding)
            self._in_flight.clear()
            self._running.clear()
            self._connection = None
            self._messages.put(None)
            self._messages = SimpleQueue()  # later messages are for the next process
        self._crash, self._encoding = "", None
        return death

    def _deliver(self, messages: SimpleQueue[object], connection: Connection) -> None:
        """Sends the messages up to a None; holds no lock, because a busy process makes it wait."""
        while (message := messages.get()) is not None:
            try:
                self._send(message, connection)
            except OSError:
                return  # the reader sees the same end of the pipe and reports the jobs in flight

    def _send(self, message: object, connection: Connection) -> None:
        """Sends a message; jobs that cannot travel, such as messages nested too deep, fail alone."""
        try:
            connection.send(message)
        except OSError:
            raise
        except Exception as error:
            if not isinstance(message, Submit):
                raise
            if len(message.jobs) > 1:
                for job in message.jobs:
                    self._send(Submit((job,), message.priority), connection)
                return
            refused = request_error("the job cannot be sent to the engine", error)
            self._pass_on([RequestOutput(message.jobs[0].id, 0, error=refused)])
