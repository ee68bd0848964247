"""The variants of kernels that a GPU would compile, with no GPU: `python -m tests.support.pretend_cuda.variants NAME`.

An engine runs on the pretend device with Torch's references; each of their calls goes to the launch function of the
kernel besides, as far as Triton's compiler, which notes the variant and compiles nothing. A process of its own, since
Triton's interpreter is a matter of its import. Prints the variants of the start and those that came later.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.support.pretend_cuda import engines
from tests.support.pretend_cuda.kernels import (
    ReferenceAttention,
    ReferenceLayerKernels,
    ReferenceSampler,
    fill_from_rows,
    unwrapped,
)
from worker.engine.cuda import fill_kernel, triton_attention
from worker.engine.cuda.layers import layer_kernels
from worker.engine.cuda.sampling import sampler
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import KVCache
from worker.engine.model.step_batch import PagedRows, StepBatch

TritonAttention, TritonSampler = triton_attention.TritonAttention, sampler.TritonSampler
LayerKernels, fill_rows_by_kernel = layer_kernels.LayerKernels, fill_kernel.fill_from_rows

Variants = set[str]


class H100:
    """A driver of Triton that knows its device and nothing else."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: Any = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@contextmanager
def noted() -> Iterator[Variants]:
    """The variants that launches would compile, by kernel, types, alignments and constants."""
    variants: Variants = set()
    run = JITFunction.run

    def note(kernel: Any, key: Any, *_: Any, **__: Any) -> None:
        variants.add(f"{kernel.__name__} {key}")

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
        return run(kernel, *arguments, grid=grid, warmup=True, **options)

    driver.set_active(H100())
    with patch.object(JITFunction, "_do_compile", note), patch.object(JITFunction, "run", launch):
        yield variants


class NotedAttention(ReferenceAttention):
    def __init__(self, num_processors: int = 132) -> None:
        self._kernel = TritonAttention(num_processors)

    def __call__(self, layer: AttentionLayer, query: Tensor, cache: KVCache, rows: PagedRows) -> Tensor:
        pools: Any = SimpleNamespace(pools=lambda index: unwrapped(cache.pools(index)), block_size=cache.block_size)
        with _disable_current_modes():
            self._kernel(unwrapped(layer), unwrapped(query), pools, unwrapped(rows))
        return super().__call__(layer, query, cache, rows)


class NotedSampler(ReferenceSampler):
    def __init__(self, max_rows: int, vocab: int, device: torch.device) -> None:
        super().__init__(max_rows, vocab, device)
        with _disable_current_modes():
            self._kernels = TritonSampler(max_rows, vocab, torch.device("cpu"))

    def __call__(self, *arguments: Any, **options: Any) -> None:
        with _disable_current_modes():
            self._kernels(*unwrapped(list(arguments)), **options)
        super().__call__(*arguments, **options)

    def find_alternatives(self, *arguments: Any) -> None:
        with _disable_current_modes():
            self._kernels.find_alternatives(*unwrapped(list(arguments)))
        super().find_alternatives(*arguments)


def _noted(name: str) -> Any:
    def call(kernels: Any, *arguments: Any) -> Any:
        with _disable_current_modes():
            getattr(LayerKernels(), name)(*unwrapped(list(arguments)))
        return getattr(ReferenceLayerKernels, name)(kernels, *arguments)

    return call


class NotedLayerKernels(ReferenceLayerKernels):
    rms_norm, rotate_and_write, swiglu, matmul = map(_noted, ("rms_norm", "rotate_and_write", "swiglu", "matmul"))


def fill(batch: StepBatch, *others: Any) -> None:
    with _disable_current_modes():
        fill_rows_by_kernel(unwrapped(batch), *unwrapped(list(others)))
    fill_from_rows(batch, *others)


def variants_of(architecture: str, options: dict[str, Any]) -> tuple[Variants, Variants]:
    """Those of loading and of the engine's start, and those that requests of all kinds bring."""
    requests = engines.mixed_requests(20, [*engines.KINDS, *({"top_logprobs": count} for count in (1, 16, 20))])
    with (
        noted() as variants,
        patch.object(engines, "ReferenceAttention", NotedAttention),
        patch.object(engines, "ReferenceSampler", NotedSampler),
        patch.object(engines, "ReferenceLayerKernels", NotedLayerKernels),
        patch.object(engines, "fill_from_rows", fill),
        engines.device_with_kernels(),
    ):
        engine = engines.engine_of(engines.model_on("cuda:0", architecture, **options))
        at_start = set(variants)
        engines.answers(engine, requests)
        return at_start, variants - at_start


if __name__ == "__main__":
    found = variants_of(sys.argv[1], json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps([sorted(each) for each in found]) + "\n")
