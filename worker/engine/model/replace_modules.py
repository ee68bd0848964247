"""Putting other modules in the place of a loaded model's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_children(
    model: nn.Module, is_wanted: Callable[[nn.Module, nn.Module], bool], make: Callable[[nn.Module], nn.Module]
) -> int:
    """Replaces every child for which `is_wanted(parent, child)` holds by `make(child)`; returns how many."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_wanted(parent, child):
                setattr(parent, name, make(child))
                replaced += 1
    return replaced


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    """Replaces every `nn.Linear` of the model; returns how many."""

    def make_of(child: nn.Module) -> nn.Module:
        assert isinstance(child, nn.Linear)
        return make(child)

    return replace_children(model, lambda _, child: type(child) is nn.Linear, make_of)
