"""The main loop of the engine process: loads the model, then steps as long as there is work.

Obeys the messages of `worker.engine_process.protocol`; knows neither Celery nor SQL.
"""

from __future__ import annotations

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
from worker.engine.request import EngineError, Request, RequestOutput, describe_error, failing_alone
from worker.engine_process.protocol import (
    Cancel,
    Crashed,
    Encoding,
    Failed,
    Finished,
    Ready,
    Started,
    Stats,
    Stop,
    Submit,
)

STATS_INTERVAL = 1.0  # seconds between two reports


def run_engine(connection: Connection, options: EngineOptions) -> None:
    """Loads the model, then steps until a `Stop` or the end of the parent."""
    transformers.utils.logging.disable_progress_bar()  # its standard error is a log
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    try:
        engine = Engine.start(options)
        environment = describe_environment(engine.loaded)
    except (EngineError, CheckpointProblem) as error:
        connection.send(Failed(str(error)))
        return
    connection.send(Ready(environment, str(engine.loaded.model.device), engine.kv_tokens))
    try:
        _serve(connection, engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone: nobody reads the answers
    except Exception as error:
        connection.send(Crashed(f"the engine ended with {describe_error(error)}"))
        raise


def _serve(connection: Connection, engine: Engine) -> None:
    reported, is_stopping = monotonic(), False
    while engine.has_work or not is_stopping:
        while (not is_stopping and not engine.has_work) or connection.poll():
            message = connection.recv()
            if isinstance(message, Submit):
                _send(connection, _submit(connection, engine, message))
            elif isinstance(message, Cancel):
                for job_id in message.job_ids:
                    engine.cancel(job_id)
            elif isinstance(message, Stop):
                is_stopping = True
        _send(connection, engine.step(on_admitted=lambda job_ids: connection.send(Started(tuple(job_ids)))))
        if monotonic() - reported >= STATS_INTERVAL or not engine.has_work:
            stats = engine.stats
            connection.send(Stats(stats.num_steps, stats.num_sequence_steps, stats.num_generated_tokens))
            reported = monotonic()


def _send(connection: Connection, outputs: list[RequestOutput]) -> None:
    if outputs:
        connection.send(Finished(tuple(outputs)))


def _submit(connection: Connection, engine: Engine, message: Submit) -> list[RequestOutput]:
    """Tokenizes and queues the jobs; returns an output with an error for each that could not be."""
    refused = []
    for job in message.jobs:
        connection.send(Encoding(job.id))
        try:
            engine.submit(_request(engine, job, message.priority))
        except EngineError as error:
            refused.append(RequestOutput(job.id, 0, error=error))
    connection.send(Encoding(None))
    return refused


def _request(engine: Engine, job: JobMessage, priority: int) -> Request:
    """The job with its prompt as token ids. Raises `EngineError`, whatever it is that goes wrong."""
    with failing_alone("the prompt cannot be read"):
        if job.prompt is not None:
            text, prompt_ids = job.prompt, engine.encode(job.prompt)
        else:
            text = engine.chat_text(job.messages or [], job.chat or ChatInputs(), job.created_at)
            prompt_ids = engine.encode_rendered(text)
    return Request(job.id, prompt_ids, job.params, priority, prompt_text=text if job.params.keep_prompt else None)
