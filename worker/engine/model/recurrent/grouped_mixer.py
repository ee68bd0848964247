"""A recurrent layer of Transformers inside a step: called once for all decoding rows, and for each prompt chunk.

Works for every layer that keeps its states in Transformers' cache, on any device, with copies of the states in and out.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.model.recurrent.mixer import RecurrentMixer
from worker.engine.model.recurrent.state_cache import CallCache
from worker.engine.model.recurrent.state_pool import StateKey, StatePool
from worker.engine.model.step_batch import MIN_ROWS, StateChunk, StateRows


class GroupedMixer(RecurrentMixer):
    """Takes the place of any layer."""

    def __init__(self, mixer: nn.Module, cache_name: str, keys: tuple[StateKey, ...], piece: int | None = None) -> None:
        """`piece` is the number of a prompt's tokens in each call; None for a layer whose calls may be of any length.

        A layer such as Mamba 2 adds up its own chunks in another order when they come in several calls.
        """
        super().__init__()
        self.mixer = mixer
        self._cache_name = cache_name
        self._keys = keys
        self._piece = piece

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rows of a step [1, rows, hidden] to as many."""
        assert self.step is not None, "the model was called outside of a step"
        call = MixerCall(self.mixer, self._cache_name, *args, **kwargs)
        rows = call.hidden[0]
        output = torch.zeros_like(rows)
        states, pool = self.step.batch.on(rows.device).states, self.step.states
        if states is None or pool is None:  # a step that only measures its memory
            return output[None]
        if states.num_decoding:
            output[: states.num_decoding] = self._decode(call, rows, states, pool)
        for chunk in states.chunks:
            output.index_copy_(0, chunk.rows, self._prefill(call, rows, chunk, pool))
        return output[None]

    def _decode(self, call: MixerCall, rows: Tensor, states: StateRows, pool: StatePool) -> Tensor:
        """One token of each decoding sequence: they are the first rows."""
        count, indices = states.num_decoding, states.decoding
        rows = rows[:count]
        if count < MIN_ROWS:
            rows, indices = rows.expand(MIN_ROWS, -1), indices.expand(MIN_ROWS)
        cache = CallCache(pool.gather(self._keys, indices))
        output = call(rows[:, None], cache)[:count, 0]
        pool.write({key: state[:count] for key, state in cache.states.items()}, states.decoding)
        return output

    def _prefill(self, call: MixerCall, rows: Tensor, chunk: StateChunk, pool: StatePool) -> Tensor:
        states: Mapping[StateKey, Tensor] | None = None if chunk.begins else pool.gather(self._keys, chunk.state)
        outputs = []
        for piece in self._pieces(chunk.rows):
            cache = CallCache(states)
            outputs.append(call(rows.index_select(0, piece)[None], cache)[0])
            states = cache.states
        assert states is not None, "a chunk without rows"
        pool.write(states, chunk.state)
        return torch.cat(outputs)

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        """The rows of a chunk, which begins at a border of pieces; too short a last one joins the one before."""
        pieces = list(rows.split(self._piece or len(rows)))
        if len(pieces) > 1 and len(pieces[-1]) < MIN_ROWS:
            pieces[-2:] = [torch.cat(pieces[-2:])]
        return pieces


class MixerCall:
    """The arguments of a layer's call, with other rows and another cache."""

    def __init__(self, mixer: nn.Module, cache_name: str, /, *args: Any, **kwargs: Any) -> None:
        self._mixer = mixer
        self._cache_name = cache_name
        self._bound = signature(mixer.forward).bind(*args, **kwargs)
        self._hidden_name = next(iter(self._bound.arguments))
        self.hidden: Tensor = self._bound.arguments[self._hidden_name]
        if "attention_mask" in self._bound.arguments:
            self._bound.arguments["attention_mask"] = None  # nothing is padded

    def __call__(self, hidden: Tensor, cache: CallCache) -> Tensor:
        self._bound.arguments[self._hidden_name] = hidden
        self._bound.arguments[self._cache_name] = cache
        output: Tensor = self._mixer(*self._bound.args, **self._bound.kwargs)
        return output
