"""The main loop of the engine process: loads the model, then steps as long as there is work.

Obeys the messages of `worker.engine_process.protocol`; knows neither Celery nor SQL.
"""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic

import torch
import transformers

from models.chat import ChatInputs
from models.checkpoint.small_files import CheckpointProblem
from models.engine_options import EngineOptions
from models.message import JobMessage
from worker.engine.engine import Engine
from worker.engine.provenance import describe_environment
from worker.engine.request import EngineError, Request, RequestOutput, failing_alone, storable
from worker.engine.stats import Stats
from worker.engine_process.finisher import Finisher, SharedConnection
from worker.engine_process.protocol import (
    Cancel,
    Encoding,
    Failed,
    Ready,
    Started,
    Stop,
    Submit,
)

STATS_INTERVAL = 1.0  # seconds between two reports

#: The requests that had ended before a crash have so long for their outputs; else they would be decoded again.
CLOSING_SECONDS = 10.0

#: The steps get the interpreter so soon from the thread of the outputs; by Python's default a GPU would wait 5 ms.
SWITCH_SECONDS = 0.0002


def run_engine(connection: Connection, options: EngineOptions, output_timeout: float) -> None:
    """Loads the model, then steps until a `Stop` or the end of the parent; an output has so many seconds."""
    transformers.utils.logging.disable_progress_bar()  # its standard error is a log
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    try:
        engine = Engine.start(options)
        environment = describe_environment(engine.loaded)
    except (EngineError, CheckpointProblem) as error:
        connection.send(Failed(str(error)))
        return
    gc.collect()
    gc.freeze()  # what is there now stays: a step would wait for a search through the whole model
    sys.setswitchinterval(SWITCH_SECONDS)
    connection.send(Ready(environment, str(engine.loaded.model.device), engine.kv_tokens))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone: nobody reads the answers
        serve(connection, engine, output_timeout)


def serve(connection: Connection, engine: Engine, output_timeout: float) -> None:
    """Obeys the parent's messages until a `Stop`. Says why where the engine ends before, and raises that."""
    sender = SharedConnection(connection)
    finisher = Finisher(sender, engine.output_of, output_timeout)
    try:
        _obey(connection, sender, engine, finisher)
        finisher.drain()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        finisher.close(CLOSING_SECONDS)
        sender.send_end(error)
        raise


def _obey(connection: Connection, sender: SharedConnection, engine: Engine, finisher: Finisher) -> None:
    reporter, is_stopping = Reporter(sender, engine), False
    while engine.has_work or not is_stopping:
        while (not is_stopping and not engine.has_work) or connection.poll():
            if not engine.has_work:
                reporter.report_idle()
            message = connection.recv()
            if isinstance(message, Submit):
                with finisher.paused():
                    refused = _submit(sender, engine, message)
                finisher.add(refused)
            elif isinstance(message, Cancel):
                for job_id in message.job_ids:
                    engine.cancel(job_id)
            elif isinstance(message, Stop):
                is_stopping = True
        finisher.add(engine.step_without_texts(lambda job_ids: sender.send(Started(tuple(job_ids)))))
        finisher.check()
        reporter.report()


class Reporter:
    """Sends an engine's `Stats` once in a while, and once when its work has ended."""

    def __init__(self, sender: SharedConnection, engine: Engine) -> None:
        self._sender = sender
        self._engine = engine
        self._reported = monotonic()
        self._is_idle = True  # the last report says so

    def report(self) -> None:
        """Reports after a step, if it is time."""
        self._is_idle = False
        if monotonic() - self._reported >= STATS_INTERVAL:
            self._send()

    def report_idle(self) -> None:
        """Reports before a wait for work: nothing changes until it comes."""
        if not self._is_idle:
            self._is_idle = True
            self._send()

    def _send(self) -> None:
        self._reported = monotonic()
        self._sender.send(_stats_of(self._engine))


def _stats_of(engine: Engine) -> Stats:
    scheduler = engine.scheduler
    blocks = scheduler.blocks
    return Stats(
        counts=engine.stats,
        num_prefix_queries=blocks.num_prefix_queries,
        num_prefix_hits=blocks.num_prefix_hits,
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_running_sequences=scheduler.num_sequences,
        kv_usage=blocks.num_in_use / blocks.num_usable,
    )


def _submit(sender: SharedConnection, engine: Engine, message: Submit) -> list[RequestOutput]:
    """Tokenizes and queues the jobs; returns an output with an error for each that could not be."""
    refused = []
    for job in message.jobs:
        sender.send(Encoding(job.id))
        try:
            engine.submit(_request(engine, job, message.priority))
        except EngineError as error:
            refused.append(RequestOutput(job.id, 0, error=error))
    sender.send(Encoding(None))
    return refused


def _request(engine: Engine, job: JobMessage, priority: int) -> Request:
    """The job with its prompt as token ids. Raises `EngineError`, whatever it is that goes wrong."""
    with failing_alone("the prompt cannot be read"):
        if job.prompt is not None:
            text, prompt_ids = job.prompt, engine.encode(job.prompt)
        else:
            text = engine.chat_text(job.messages or [], job.chat or ChatInputs(), job.created_at)
            prompt_ids = engine.encode_rendered(text)
    kept = storable(text) if job.params.keep_prompt else None
    return Request(job.id, prompt_ids, job.params, priority, prompt_text=kept)
