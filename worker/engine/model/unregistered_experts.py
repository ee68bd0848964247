"""Experts that Transformers computes in loops of its own, which no registered function takes the place of.

Their modules are known by the names of their weights: those of DBRX lie in `w1`, `v1` and `w2`, LongCat has some
experts that change nothing, JetMoE multiplies rows that are sorted by their experts already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.model.experts import PackedExperts, as_linear, is_swish, swiglu, with_more_rows
from worker.engine.model.linear import Linear, MakeLinear
from worker.engine.model.replace_modules import replace_children


class ExpertsModule(nn.Module):
    """Takes the place of a module that is called with rows, their experts and the experts' weights."""

    def __init__(self, packed: PackedExperts) -> None:
        super().__init__()
        self._packed = packed

    def forward(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self._packed(rows.reshape(-1, rows.shape[-1]), chosen, weights).view(rows.shape)


class SortedExperts(nn.Module):
    """Takes the place of a module that is called with rows in the order of their experts, and how many each has."""

    def __init__(self, experts: Any, make_linear: MakeLinear) -> None:
        super().__init__()
        self._linears = [make_linear([as_linear(weight)]) for weight in experts.weight.detach()]

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        parts = zip(self._linears, rows.split(counts), strict=True)
        return torch.cat([with_more_rows(linear, part) for linear, part in parts if len(part)])


def pack_unregistered_experts(model: nn.Module, make_linear: MakeLinear) -> int:
    """Replaces every such module of the model; returns how many."""

    def make(child: nn.Module) -> nn.Module:
        if _is_sorted(child):
            return SortedExperts(child, make_linear)
        weights, activation = (_dbrx if _is_dbrx(child) else _longcat)(child)
        return ExpertsModule(_packed(weights, activation, make_linear))

    def is_wanted(_: nn.Module, child: nn.Module) -> bool:
        return _is_sorted(child) or _is_dbrx(child) or _is_longcat(child)

    return replace_children(model, is_wanted, make)


#: Of one expert: gate, up and down, [out_features, in_features] each.
_Weights = tuple[Tensor, Tensor, Tensor]


def _packed(weights: Iterator[_Weights], activation: Any, make_linear: MakeLinear) -> PackedExperts:
    has_epilogue = is_swish(activation)
    ups: list[Linear] = []
    downs: list[Linear] = []
    for gate, up, down in weights:
        ups.append(make_linear([as_linear(gate), as_linear(up)], is_gate_up=has_epilogue))
        downs.append(make_linear([as_linear(down)]))
    return PackedExperts(ups, downs, swiglu if has_epilogue else _gated_by(activation))


def _gated_by(activation: Callable[[Tensor], Tensor]) -> Callable[[Linear, Tensor], Tensor]:
    def gated(up: Linear, rows: Tensor) -> Tensor:
        gate, values = up(rows).chunk(2, dim=-1)
        return activation(gate) * values

    return gated


def _is_sorted(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 3 and hasattr(module, "num_experts")


def _is_dbrx(module: nn.Module) -> bool:
    glu = getattr(module, "mlp", None)
    return hasattr(module, "num_experts") and all(hasattr(glu, name) for name in ("w1", "v1", "w2"))


def _dbrx(experts: Any) -> tuple[Iterator[_Weights], Any]:
    glu = experts.mlp
    shape = (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)
    gates, ups, downs = (weight.detach().view(shape) for weight in (glu.w1, glu.v1, glu.w2))
    return zip(gates, ups, (down.t().contiguous() for down in downs), strict=True), glu.activation_fn


def _is_longcat(module: nn.Module) -> bool:
    return hasattr(module, "identity_expert") and getattr(module, "gate_up_proj", None) is not None


def _longcat(experts: Any) -> tuple[Iterator[_Weights], Any]:
    gates, ups = experts.gate_up_proj.detach()[: experts.num_routed_experts].chunk(2, dim=1)
    return zip(gates, ups, experts.down_proj.detach(), strict=True), experts.act_fn
