"""The experts of mixture models, batch-invariant: each row's matmuls and sums have an order of their own.

Registered with Transformers, whose own functions multiply all rows of all experts at once: there a row's rounding
depends on how many others chose its experts. Here each expert's weights are packed as those of any linear layer, and a
row's contributions are added in the order of its router, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate

from worker.engine.model.linear import Linear, MakeLinear
from worker.engine.model.step_batch import MIN_ROWS

EXPERTS_NAME = "nocturne"

#: The activation modules that a matmul has as its epilogue.
SWISH = (nn.SiLU, SiLUActivation)

#: The attribute of an experts module that has its packed weights.
_PACKED = "_nocturne_packed"


@dataclass(frozen=True)
class PackedExperts:
    """The weights of a module of experts, expert by expert; numbers beyond theirs are experts that change nothing."""

    up: SequenceOf[Linear]
    down: SequenceOf[Linear]
    activated: Callable[[Linear, Tensor], Tensor]  # the activation of what the first layer makes of some rows
    normed: Callable[[Tensor], Tensor] | None = None  # of an expert's output

    def __call__(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Rows [rows, hidden] with their experts and the experts' weights, [rows, k] each, to as many."""
        num_rows, k = chosen.shape
        order = chosen.reshape(-1).argsort(stable=True)
        counts = torch.bincount(chosen.reshape(-1), minlength=len(self.up)).tolist()
        gathered = rows.index_select(0, order // k)
        outputs = gathered.clone()
        start = 0
        for expert, count in enumerate(counts[: len(self.up)]):
            if count:
                outputs[start : start + count] = self._run(expert, gathered[start : start + count])
            start += count
        contributions = torch.empty_like(outputs).index_copy_(0, order, outputs).view(num_rows, k, -1)
        return _added_in_order(contributions, weights).to(rows.dtype)

    def _run(self, expert: int, rows: Tensor) -> Tensor:
        output = with_more_rows(lambda rows: self.down[expert](self.activated(self.up[expert], rows)), rows)
        return output if self.normed is None else self.normed(output)


def with_more_rows(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """The function of rows, which it gets at least `MIN_ROWS` of, or none."""
    count = len(rows)
    return function(rows.expand(MIN_ROWS, -1))[:count] if 0 < count < MIN_ROWS else function(rows)


def pack_experts(model: nn.Module, make_linear: MakeLinear) -> int:
    """Packs every module of experts of the model, whose own weights are dropped; returns how many."""
    found: list[Any] = [module for module in model.modules() if _is_experts(module)]
    for experts in found:
        setattr(experts, _PACKED, _packed(experts, make_linear))
        experts.config = copy(experts.config)  # its own: other models may be made of the same configuration
        experts.config._experts_implementation = EXPERTS_NAME
    return len(found)


def _packed(experts: Any, make_linear: MakeLinear) -> PackedExperts:
    is_swiglu = _is_swiglu(experts)
    activation = experts._apply_gate if experts.has_gate else experts.act_fn
    return PackedExperts(
        _pack(experts, "gate_up_proj" if experts.has_gate else "up_proj", make_linear, is_gate_up=is_swiglu),
        _pack(experts, "down_proj", make_linear),
        swiglu if is_swiglu else lambda up, rows: activation(up(rows)),
        experts.post_expert_norm if experts.has_post_expert_norm else None,
    )


def swiglu(up: Linear, rows: Tensor) -> Tensor:
    return up.swiglu(rows)


def packed_experts(experts: Any) -> PackedExperts:
    """The packed weights of a module of experts."""
    packed: PackedExperts = getattr(experts, _PACKED)
    return packed


def _experts_forward(experts: Any, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    return packed_experts(experts)(rows, chosen, weights)


def _is_experts(module: nn.Module) -> bool:
    """Whether Transformers lets a registered function compute the module."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "down_proj")


def _is_swiglu(experts: Any) -> bool:
    """Whether the activation is swish(gate) * up, which the matmul has as its epilogue."""
    is_default = type(experts)._apply_gate is _default_apply_gate
    return bool(experts.has_gate and experts.is_concatenated and is_default and is_swish(experts.act_fn))


def is_swish(activation: Any) -> bool:
    return isinstance(getattr(activation, "activation", activation), SWISH)


def _pack(experts: Any, name: str, make_linear: MakeLinear, *, is_gate_up: bool = False) -> list[Linear]:
    """A linear layer for each expert; the module's own parameters become None."""
    weights: Tensor = getattr(experts, name).detach()
    biases: Tensor | None = getattr(experts, f"{name}_bias").detach() if experts.has_bias else None
    if experts.is_transposed:
        weights = weights.transpose(1, 2)
    linears = []
    for expert, weight in enumerate(weights):
        whole = as_linear(weight.contiguous(), None if biases is None else biases[expert])
        linears.append(make_linear(halves(whole) if is_gate_up else [whole], is_gate_up=is_gate_up))
    setattr(experts, name, None)
    if biases is not None:
        setattr(experts, f"{name}_bias", None)
    return linears


def as_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An `nn.Linear` on a weight [out_features, in_features]."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def halves(linear: nn.Linear) -> list[nn.Linear]:
    """Gate and up of a layer that has them one above the other."""
    biases = (None, None) if linear.bias is None else linear.bias.detach().chunk(2)
    return [as_linear(weight, bias) for weight, bias in zip(linear.weight.detach().chunk(2), biases, strict=True)]


def _added_in_order(contributions: Tensor, weights: Tensor) -> Tensor:
    """Sums [rows, k, hidden] times weights [rows, k] over k, one after the other in fp32."""
    factors = weights.float()[..., None]
    total = contributions[:, 0].float() * factors[:, 0]
    for index in range(1, contributions.shape[1]):
        total += contributions[:, index].float() * factors[:, index]
    return total


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _experts_forward)
