"""Finds the layers that keep a recurrent state: those that ask the cache for one while two tokens are computed.

Whether a prompt may be divided is found by a state of NaN: a layer that reads it has NaN in its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from worker.engine.model.recurrent.delta_net import DeltaNetPacker
from worker.engine.model.recurrent.grouped_mixer import GroupedMixer, MixerCall
from worker.engine.model.recurrent.state_cache import CallCache
from worker.engine.model.recurrent.state_pool import StateKey, StateLayout, StateShape
from worker.engine.request import ModelUnavailable

#: Names of the cache in the models' signatures.
CACHE_NAMES = ("past_key_values", "cache_params")

#: Tokens that a layer's rule for many tokens takes at once, where the layer does not say: of the gated delta rule.
DEFAULT_PROMPT_UNIT = 64


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class StateProbe(CallCache):
    """Stands in for the cache while a model is loaded: an empty one, which notes the layers that ask it for states."""

    def __init__(self) -> None:
        super().__init__()
        self._running: list[_Call] = []  # the modules that are being called, the outermost first
        self._askers: dict[int, _Call] = {}  # by layer

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Knows, while the model runs, which of its modules is being called."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._running.append(_Call(module, args, kwargs))

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._running.pop()

        with ExitStack() as hooks:
            for module in model.modules():
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The keyword arguments that let the model use this cache."""
        names = [name for name in CACHE_NAMES if name in signature(model.forward).parameters]
        return {names[0]: self, "use_cache": True} if names else {"use_cache": False}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, **_: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The attention's part of the cache: two tokens see each other alone."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        return query_length, 0

    def _before(self, key: StateKey) -> Tensor | None:
        call = self._running[-1]
        if self._askers.setdefault(key.layer, call).module is not call.module:
            raise ModelUnavailable(f"two modules of layer {key.layer} keep states; not supported")
        return None

    def layout(self) -> StateLayout:
        """The states that were asked for and handed over."""
        mixers = [call.module for call in self._askers.values()]
        if len({id(mixer) for mixer in mixers}) < len(mixers):
            raise ModelUnavailable("its layers share a module that keeps a state; not supported")
        shapes = {key: StateShape(tuple(s.shape[1:]), s.dtype, s.device) for key, s in self.states.items()}
        units = [_prompt_unit(call.module) for layer, call in self._askers.items() if self._is_recurrent(layer)]
        return StateLayout(shapes, lcm(*units), all(map(self._remembers, self._askers)))

    @torch.inference_mode()
    def wrap(self, model: nn.Module, layout: StateLayout, *, pack: bool) -> StateLayout:
        """Puts a `RecurrentMixer` in the place of each layer that asked; returns the states as these keep them.

        With `pack` one of our own, where it computes the same.
        """
        layers = {id(call.module): layer for layer, call in self._askers.items()}
        packer, shapes = DeltaNetPacker(), dict(layout.shapes)
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if (layer := layers.get(id(child))) is None:
                    continue
                packed = packer.packed(child, self._cache_name(layer), self._keys(layer)) if pack else None
                if packed is not None:
                    shapes |= packed.own_shapes(shapes)
                setattr(parent, name, packed or self._grouped(child, layer))
        return replace(layout, shapes=shapes)

    def _grouped(self, mixer: nn.Module, layer: int) -> GroupedMixer:
        return GroupedMixer(mixer, self._cache_name(layer), self._keys(layer), _own_chunk(mixer))

    @property
    def state_layers(self) -> set[int]:
        return set(self._askers)

    @property
    def mixers(self) -> list[nn.Module]:
        return [call.module for call in self._askers.values()]

    def _keys(self, layer: int) -> tuple[StateKey, ...]:
        return tuple(key for key in self.states if key.layer == layer)

    def _is_recurrent(self, layer: int) -> bool:
        return any(key.kind == "recurrent" for key in self._keys(layer))

    def _cache_name(self, layer: int) -> str:
        call = self._askers[layer]
        given = signature(call.module.forward).bind(*call.args, **call.kwargs).arguments
        return next(name for name, value in given.items() if isinstance(value, Cache))

    def _remembers(self, layer: int) -> bool:
        """Whether a prompt's second part sees each state that the first one left."""
        return all(self._reads(layer, key) for key in self._keys(layer))

    def _reads(self, layer: int, key: StateKey) -> bool:
        asked = self._askers[layer]
        states = {each: torch.zeros_like(self.states[each]) for each in self._keys(layer)}
        states[key] = torch.full_like(states[key], float("nan"))
        call = MixerCall(asked.module, self._cache_name(layer), *asked.args, **asked.kwargs)
        output = call(call.hidden, CallCache(states))
        if not isinstance(output, Tensor):
            raise ModelUnavailable("a module that keeps a state returns more than its rows; not supported")
        return bool(output.isnan().any())


def _prompt_unit(mixer: nn.Module) -> int:
    return _own_chunk(mixer) or DEFAULT_PROMPT_UNIT


def _own_chunk(mixer: nn.Module) -> int | None:
    """The tokens that a layer takes at once, where it says so."""
    size = getattr(mixer, "chunk_size", None)
    return size if isinstance(size, int) else None
