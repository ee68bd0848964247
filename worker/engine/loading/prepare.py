"""A model in memory gets our attention, and its layers are made ready for packed rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from worker.engine.backend import Backend, DeviceModel, LoadOptions
from worker.engine.model.attention import ATTENTION_NAME, ShapeProbe, step_at_hand
from worker.engine.model.experts import as_linear
from worker.engine.model.kv_cache import LayerShape
from worker.engine.model.recurrent.probe import StateProbe
from worker.engine.model.recurrent.state_pool import StateLayout
from worker.engine.model.replace_modules import replace_children, watch_linears
from worker.engine.request import ModelUnavailable

#: Layer types without any memory of the tokens before.
FEED_FORWARD_LAYERS = ("mlp", "moe")


def load_packed(
    name: str, model: Any, backend: type[Backend], device: torch.device, options: LoadOptions
) -> DeviceModel:
    """The model, which is on the device, with rows of all sequences together; its own layers are of no use afterwards.

    Raises `ModelUnavailable`, and whatever the model raises whose forward pass our rows do not suit.
    """
    model.set_attn_implementation(ATTENTION_NAME)
    replace_children(model, lambda _, child: isinstance(child, Conv1D), _linear_of)
    layers, states = _probe_layers(name, model, device, pack=options.fuse)
    return replace(backend.load(model, layers, device, options), states=states)


def _linear_of(layer: Any) -> nn.Module:
    """GPT-2's linear layers keep their weights as [in_features, out_features], in a class of their own."""
    return as_linear(layer.weight.detach().t().contiguous(), layer.bias.detach())


def _probe_layers(
    name: str, model: Any, device: torch.device, *, pack: bool
) -> tuple[dict[int, LayerShape], StateLayout]:
    """Runs two tokens through the model to see what each layer keeps; wraps the layers that keep a recurrent state."""
    probe, states = ShapeProbe(), StateProbe()
    ids = torch.zeros((1, 2), dtype=torch.long, device=device)
    positions = torch.arange(2, device=device)[None]
    with torch.inference_mode(), step_at_hand(probe), watch_linears(model), states.watching(model):
        model(input_ids=ids, position_ids=positions, **states.arguments(model))
    layout = _state_layout(states, probe)
    if len(probe.layers.keys() | states.state_layers) != _num_layers_with_memory(model.config.get_text_config()):
        raise ModelUnavailable(f"the attention of {name!r} ({type(model).__name__}) cannot be replaced; not supported")
    return probe.layers, states.wrap(model, layout, pack=pack)


@torch.inference_mode()
def _state_layout(states: StateProbe, probe: ShapeProbe) -> StateLayout:
    if any(module in probe.modules for mixer in states.mixers for module in mixer.modules()):
        raise ModelUnavailable("a module keeps both a recurrent state and keys; not supported")
    return states.layout()


def _num_layers_with_memory(config: Any) -> int:
    """Layers that keep keys or a state; the others are feed-forward alone."""
    types = getattr(config, "layer_types", None) or []
    return int(config.num_hidden_layers) - sum(each in FEED_FORWARD_LAYERS for each in types)
