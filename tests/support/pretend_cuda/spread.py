"""A model on two devices as accelerate's device map leaves it: each block has a hook that brings its inputs along."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def spread(model: Any) -> Any:
    """Puts embedding and first layers on `cuda:0`, the other layers, the norm and the head on `cuda:1`."""
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    base = model.base_model
    layers = list(base.layers)
    names = {name: child for name, child in base.named_children() if child is not base.layers}
    for name, child in names.items():
        _place(child, second if "norm" in name else first)
    for index, layer in enumerate(layers):
        _place(layer, first if index < len(layers) // 2 else second)
    _place(model.get_output_embeddings(), second)
    return model


def _place(module: nn.Module, device: torch.device) -> None:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def bring(module: nn.Module, args: Any, kwargs: Any) -> Any:  # noqa: ARG001
        return tree_map(moved, (args, kwargs))

    module.to(device)
    module.register_forward_pre_hook(bring, with_kwargs=True)
