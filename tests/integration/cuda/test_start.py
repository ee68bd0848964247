"""The start of an engine on a GPU: all that is compiled and recorded, and what happens where a step cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.support.pretend_cuda.engines import answers, device_with_kernels, engine_of, mixed_requests, model_on
from tests.support.pretend_cuda.kernels import ReferenceAttention
from tests.support.random_models import ARCHITECTURES, altered, random_pair
from worker.engine.backend import LoadOptions
from worker.engine.cuda import triton_attention
from worker.engine.cuda.backend import CudaBackend
from worker.engine.loading import deadline
from worker.engine.loading.self_check import check
from worker.engine.request import OutOfMemory


@pytest.mark.parametrize("kv_memory", [0.01, None])
@pytest.mark.parametrize("problem", ["waits", "is refused"])
def test_a_step_that_cannot_be_recorded_is_launched(
    problem: str, kv_memory: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that waits is found before a capture, which it would spoil; one may still be refused in it."""
    requests = mixed_requests(4)
    expected = answers(engine_of(random_pair("qwen2").loaded), requests)
    with device_with_kernels(memory=2**24) as machine:
        loaded = model_on("cuda:0", "qwen2")

        def decode(step: Any) -> Tensor:
            if problem == "waits":
                assert int(step.batch.positions.amax()) < 1000
            elif machine.tape is not None:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
            return loaded.model.decoder(step)

        engine = engine_of(altered(loaded, decoder=decode), kv_memory=kv_memory, prefill_tokens=64)
        told = {"waits": "called a synchronizing CUDA operation", "is refused": "operation not permitted"}[problem]
        assert caplog.text.count("launched operation by operation") == 1 and told in caplog.text
        assert answers(engine, requests) == expected
        assert machine.activity.graph_launches == 0 and not machine.activity.refuses_waits


def test_memory_that_lacks_in_a_capture_is_the_engines_own_error() -> None:
    with device_with_kernels() as machine:
        loaded = model_on("cuda:0", "qwen2")

        def decode(step: Any) -> Tensor:
            if machine.tape is not None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loaded.model.decoder(step)

        with pytest.raises(OutOfMemory):
            engine_of(altered(loaded, decoder=decode))


def test_the_self_check_does_not_count_the_time_of_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that no cache has take longer than the check may; its steps alone are what it is about."""
    clock = [0.0]
    monkeypatch.setattr(deadline, "thread_time", lambda: clock[0])

    class Slow(ReferenceAttention):
        def __init__(self, num_processors: int = 132) -> None:
            clock[0] += 1000
            super().__init__(num_processors)

    with device_with_kernels():
        monkeypatch.setattr(triton_attention, "TritonAttention", Slow)
        verdict = check(ARCHITECTURES["qwen2"](), CudaBackend, torch.device("cuda:0"), LoadOptions(allow_slow=True))
    assert clock[0] >= 1000 and verdict.path == "packed", verdict.sentence


@pytest.mark.parametrize(
    ("architecture", "deterministic", "most"), [("mistral-window", False, 25), ("qwen3", True, 30)]
)
def test_nothing_is_compiled_after_the_start(architecture: str, deterministic: bool, most: int) -> None:
    """The launches of all kinds of requests need no variant of a kernel that the start did not compile."""
    command = [sys.executable, "-m", "tests.support.pretend_cuda.variants", architecture]
    done = subprocess.run(
        [*command, json.dumps({"deterministic": deterministic})], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    at_start, later = json.loads(done.stdout.splitlines()[-1])
    assert later == [] and 15 <= len(at_start) <= most
