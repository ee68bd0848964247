"""Jobs that kill their engine, for workers started with `tests.faults.faulty_worker`.

The seed selects the fault, or the prompt one before it is tokenized: a file can set them.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

import torch

from models.engine_options import EngineOptions
from worker.engine.backend import Backend
from worker.engine.engine import Engine
from worker.engine.scheduling.step_plan import StepPlan
from worker.engine_process.loop import run_engine

RAISES, EXITS, ALLOCATES, HANGS = 666_001, 666_002, 666_003, 666_004

#: A prompt that kills its engine while it is tokenized.
ENDS_WHILE_TOKENIZED = "the end while it is tokenized"


def poisoned_engine_main(connection: Connection, options: EngineOptions) -> None:
    """The engine's main function, with a backend that obeys the seeds."""
    healthy = Backend.launch

    def launch(self: Backend, plan: StepPlan, *arguments: Any) -> Any:
        sequences = plan.decodes + [chunk.sequence for chunk in plan.prefills]
        for seed in {sequence.request.params.seed for sequence in sequences}:
            _act(seed)
        return healthy(self, plan, *arguments)

    encode = Engine.encode

    def poisoned_encode(self: Engine, prompt: str) -> tuple[int, ...]:
        if prompt == ENDS_WHILE_TOKENIZED:
            os._exit(7)
        return encode(self, prompt)

    with patch.object(Backend, "launch", launch), patch.object(Engine, "encode", poisoned_encode):
        run_engine(connection, options, output_timeout=300.0)


def _act(seed: int | None) -> None:
    if seed == RAISES:
        raise ZeroDivisionError("poison")
    if seed == EXITS:
        os._exit(9)
    if seed == ALLOCATES:
        torch.empty(2**46, dtype=torch.uint8)  # more than any machine has: torch's allocator refuses it
    if seed == HANGS:
        time.sleep(3600)
