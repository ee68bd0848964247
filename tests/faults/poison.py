"""Jobs that kill their engine, for workers started with `tests.faults.faulty_worker`.

The seed selects the fault: a prompt file can set it, and it changes nothing else for a greedy job.
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
from worker.engine.scheduling.step_plan import StepPlan
from worker.engine_process.loop import run_engine

RAISES, EXITS, ALLOCATES, HANGS = 666_001, 666_002, 666_003, 666_004


def poisoned_engine_main(connection: Connection, options: EngineOptions) -> None:
    """The engine's main function, with a backend that obeys the seeds."""
    healthy = Backend.launch

    def launch(self: Backend, plan: StepPlan, *arguments: Any) -> Any:
        sequences = plan.decodes + [chunk.sequence for chunk in plan.prefills]
        for seed in {sequence.request.params.seed for sequence in sequences}:
            _act(seed)
        return healthy(self, plan, *arguments)

    with patch.object(Backend, "launch", launch):
        run_engine(connection, options)


def _act(seed: int | None) -> None:
    if seed == RAISES:
        raise ZeroDivisionError("poison")
    if seed == EXITS:
        os._exit(9)
    if seed == ALLOCATES:
        torch.empty(2**46, dtype=torch.uint8)  # more than any machine has: torch's allocator refuses it
    if seed == HANGS:
        time.sleep(3600)
