"""The cache that a recurrent layer of Transformers is called with: the states of the sequences of that call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from worker.engine.model.recurrent.state_pool import StateKey


class CallCache(Cache):
    """Holds the states of one call, in Transformers' terms: absent ones are of sequences that begin.

    A layer may change the states it is given in place, or hand over others; `states` has the newest.
    """

    def __init__(self, states: Mapping[StateKey, Tensor] | None = None) -> None:
        super().__init__(layers=[])
        self.states: dict[StateKey, Tensor] = dict(states or {})
        self._begins = states is None

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._before(StateKey(layer_idx, "conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self._before(StateKey(layer_idx, "recurrent", state_idx))

    def update_conv_state(
        self,
        conv_states: Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> Tensor:
        """Keeps the last inputs; returns all, from those that the convolution sees before the first on."""
        key = StateKey(layer_idx, "conv", state_idx)
        old = self._before(key)
        size = conv_kernel_size or (conv_states if old is None else old).shape[-1]
        if old is None:
            inputs = F.pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
        else:
            inputs = torch.cat([old, conv_states], dim=-1)
        self.states[key] = inputs[..., -size:]
        return inputs

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        self.states[StateKey(layer_idx, "recurrent", state_idx)] = recurrent_states
        return recurrent_states

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:  # noqa: ARG002
        return not self._begins

    def is_recording_past(self, layer_idx: int) -> bool:  # noqa: ARG002 - that is for speculative decoding
        return False

    def _before(self, key: StateKey) -> Tensor | None:
        """The state before this call."""
        return None if self._begins else self.states[key]
