"""Activation functions that give an element the same bits wherever it stands in the batch.

On the CPU torch computes most elements of `silu` and `gelu` with vector instructions and the last few of each
thread's share one by one, which can round differently. The size of the whole tensor, that is, the other rows,
decides which elements those are. Here tensors are padded so that no thread's share has such a rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from worker.engine.model.replace_modules import replace_children

#: Elements of one vectorized step, for the widest vectors and the smallest numbers.
VECTOR_ELEMENTS = 64

#: torch gives every thread at least this many elements.
GRAIN_SIZE = 32768

_KINDS: tuple[Any, ...] = tuple({kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()})


class AlignedActivation(nn.Module):
    """Stands in for an activation module on the CPU."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, inputs: Tensor) -> Tensor:
        return aligned(self.activation, inputs)


def aligned(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """An elementwise function of a tensor, on a CPU computed on whole vectors alone."""
    if inputs.device.type != "cpu":
        return function(inputs)
    size = inputs.numel()
    padding = -size % _alignment(size) if size else 0
    if not padding:  # in one piece: each row of a part of a wider tensor would have a rest of its own
        return function(inputs.contiguous())
    padded = F.pad(inputs.reshape(-1), (0, padding))
    return function(padded)[:size].view(inputs.shape)


def align_activations(model: nn.Module) -> int:
    """Replaces every activation module of the model; returns how many."""

    def is_wanted(parent: nn.Module, child: nn.Module) -> bool:
        return isinstance(child, _KINDS) and not isinstance(parent, AlignedActivation)

    return replace_children(model, is_wanted, AlignedActivation)


def initialize_vector_math() -> None:
    """Makes the first call of MKL's vector functions, which `torch.tanh` is made of, on one thread.

    When two threads make it at once, one of them computes that call with less accuracy (docs/decisions/0012).
    """
    torch.tanh(torch.zeros(1))


def _alignment(size: int) -> int:
    """A divisor of sizes for which each thread's share is a multiple of the vectors' length."""
    num_threads = torch.get_num_threads()
    sharing = min(num_threads, -(-size // GRAIN_SIZE))
    # `silu` is split among `sharing` threads, `gelu` among all of them.
    return VECTOR_ELEMENTS * sharing * num_threads
