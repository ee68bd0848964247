"""`worker start` with an engine that answers at once, so that `benchmarks.pipeline` measures the pipeline alone."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from unittest.mock import patch

from models.engine_options import EngineOptions
from models.entry_point import run_command
from models.message import JobMessage
from models.states import FinishReason
from worker.engine.request import Completion, RequestOutput, Trace
from worker.engine_process.protocol import Finished, Ready, Stop, Submit

TEXTS = ("model", "weights_hash", "tokenizer_hash", "dtype", "device", "attention")
ENVIRONMENT = {**dict.fromkeys(TEXTS, "null"), "versions": {}}


def completion_of(num_tokens: int) -> Completion:
    """An answer with its trace."""
    trace = Trace(
        tokens=[" word"] * num_tokens,
        logprobs=[-1.25] * num_tokens,
        sampling_logprobs=[-1.5] * num_tokens,
        entropies=[2.5] * num_tokens,
        ranks=[1] * num_tokens,
        kept=[1] * num_tokens,
    )
    return Completion(0, tuple(range(num_tokens)), " word" * num_tokens, FinishReason.LENGTH, -1.25, None, trace)


def null_engine_main(connection: Connection, options: EngineOptions) -> None:
    """Answers every job with `NULL_TOKENS` tokens as soon as it arrives."""
    connection.send(Ready(ENVIRONMENT, options.device, 0))
    answer = (completion_of(int(os.environ["NULL_TOKENS"])),)

    def output(job: JobMessage) -> RequestOutput:
        return RequestOutput(job.id, 8, answer)

    while not isinstance(message := connection.recv(), Stop):
        if isinstance(message, Submit):
            connection.send(Finished(tuple(map(output, message.jobs))))


if __name__ == "__main__":
    with patch("worker.engine_process.supervisor.engine_main", null_engine_main):
        run_command("worker.cli")
