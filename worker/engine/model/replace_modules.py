"""Replaces modules of a loaded model."""

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


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replaces every `nn.Linear` of the model."""

    def make_of(child: nn.Module) -> nn.Module:
        assert isinstance(child, nn.Linear)
        return make(child)

    replace_children(model, lambda _, child: type(child) is nn.Linear, make_of)
