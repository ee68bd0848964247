"""Replaces modules of a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

#: Marks a linear layer whose weight another module multiplies by itself.
WEIGHT_IS_READ = "_nocturne_weight_is_read"


class _WatchedLinear(nn.Linear):
    """Notes that somebody else reads its weight."""

    _is_running = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base
        self._is_running = True
        try:
            return super().forward(input)
        finally:
            self._is_running = False

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and not self._is_running:
            self.__dict__[WEIGHT_IS_READ] = True
        return super().__getattr__(name)


@contextmanager
def watch_linears(model: nn.Module) -> Iterator[None]:
    """Marks, while the model runs, its linear layers whose weight is read outside of their own matmul."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    for linear in linears:
        linear.__class__ = _WatchedLinear
    try:
        yield
    finally:
        for linear in linears:
            linear.__class__ = nn.Linear


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
    """Replaces every `nn.Linear` of the model, except those whose weight the model reads itself."""

    def make_of(child: nn.Module) -> nn.Module:
        assert isinstance(child, nn.Linear)
        return make(child)

    replace_children(model, lambda _, child: type(child) is nn.Linear and not hasattr(child, WEIGHT_IS_READ), make_of)


def drop_weights(module: nn.Module) -> None:
    """Frees the parameters of a module that nothing else holds."""
    for each in module.modules():
        each._parameters.update(dict.fromkeys(each._parameters))
