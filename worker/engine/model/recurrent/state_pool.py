"""The recurrent states of all sequences: for each state that a model asks for, a tensor with an entry per sequence.

A hybrid's layer keeps the last inputs of its convolution, and a matrix that stands for everything before. Both have
one size, however long the sequence is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worker.engine.model.device_copies import to_device
from worker.engine.model.kv_cache import lazy_zeros


class StateKey(NamedTuple):
    """One of the states of a layer, as Transformers' cache numbers them."""

    layer: int
    kind: Literal["conv", "recurrent"]
    number: int = 0


@dataclass(frozen=True)
class StateShape:
    """The state of one sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class StateLayout:
    """The states of a model, and how its prompts may be divided; the default is that of a model without any."""

    shapes: Mapping[StateKey, StateShape] = field(default_factory=dict)
    prompt_unit: int = 1  # tokens: at its multiples a prompt may be divided, and is computed as in one piece
    splits_prompts: bool = True  # false: a second part of a prompt would not see the state that the first one left

    def __bool__(self) -> bool:
        return bool(self.shapes)

    @property
    def num_bytes(self) -> int:
        """Bytes of one sequence."""
        return sum(shape.num_bytes for shape in self.shapes.values())


class StatePool:
    """The tensors, [num_states + 1, …] each; the last state belongs to no sequence: padding rows write there."""

    def __init__(self, layout: StateLayout, num_states: int) -> None:
        self.scratch = num_states
        self._pools = {
            key: lazy_zeros((num_states + 1, *shape.shape), shape.dtype, shape.device)
            for key, shape in layout.shapes.items()
        }

    def pool(self, key: StateKey) -> Tensor:
        return self._pools[key]

    def gather(self, keys: Iterable[StateKey], indices: Tensor) -> dict[StateKey, Tensor]:
        """Copies of some sequences' states, [sequences, …] each."""
        return {key: self._pools[key].index_select(0, indices) for key in keys}

    def write(self, states: Mapping[StateKey, Tensor], indices: Tensor) -> None:
        """Stores the states of some sequences."""
        for key, state in states.items():
            self._pools[key].index_copy_(0, indices, state)

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copies sequences' states, (from, to) each, in every layer."""
        indices = {device: to_device(pairs, None, device).t() for device in {p.device for p in self._pools.values()}}
        for pool in self._pools.values():
            sources, targets = indices[pool.device]
            pool.index_copy_(0, targets, pool.index_select(0, sources))
