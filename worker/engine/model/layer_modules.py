"""Modules of Transformers' layers whose place our kernels take: norms, and SwiGLU's layers.

A module is replaced where it gives what the kernel gives for random rows; any other is left alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worker.engine.model.batch_invariant_mode import without_mode
from worker.engine.model.experts import halves
from worker.engine.model.linear import Linear, MakeLinear
from worker.engine.model.replace_modules import WEIGHT_IS_READ, drop_weights
from worker.engine.model.row_operations import RMSNorm

logger = logging.getLogger(__name__)

#: The names that Transformers' norms have for their epsilon.
EPSILONS = ("variance_epsilon", "eps")

#: Sizes of the random rows: at the smallest a norm's epsilon counts, at the largest an activation's curve.
SCALES = (1e-3, 1.0, 10.0)

#: Largest relative difference to a reference that the rounding of a dtype explains.
TOLERANCES = {torch.bfloat16: 0.02, torch.float16: 0.01, torch.float32: 1e-4}


class NormKernel(Protocol):
    def rms_norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows / sqrt(mean of squares + eps) * weight over the last dimension; weights in the rows' dtype or fp32."""


class NormModule(nn.Module):
    """Stands in for an RMSNorm."""

    def __init__(self, norm: RMSNorm, kernels: NormKernel) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight, requires_grad=False)
        self.variance_epsilon = norm.eps
        self._kernels = kernels

    def forward(self, rows: Tensor) -> Tensor:
        with without_mode():
            return self._kernels.rms_norm(rows, self.weight, self.variance_epsilon)


class SwiGLUModule(nn.Module):
    """Stands in for the gate, up and down projections of a layer."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        super().__init__()
        self._gate_up, self._down = gate_up, down

    def forward(self, rows: Tensor) -> Tensor:
        """[…, in_features] to […, out_features]"""
        with without_mode():
            activated = self._gate_up.swiglu(rows.reshape(-1, rows.shape[-1]))
            return self._down(activated).view(*rows.shape[:-1], self._down.out_features)


def replace_modules(model: nn.Module, kernels: NormKernel, make_linear: MakeLinear) -> int:
    """Replaces the model's norms and SwiGLU layers; returns how many. Their own weights are dropped."""
    made: dict[nn.Module, nn.Module | None] = {}  # some models use a module at several places
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in made:
                made[child] = _norm_module(child, kernels) or _swiglu_module(child, make_linear)
            if (replacement := made[child]) is not None:
                setattr(parent, name, replacement)
    replaced = [child for child, replacement in made.items() if replacement is not None]
    return len(replaced)


def _norm_module(module: nn.Module, kernels: NormKernel) -> nn.Module | None:
    parameters = dict(module.named_parameters())
    eps = next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
    if parameters.keys() != {"weight"} or eps is None or parameters["weight"].dim() != 1:
        return None
    weight = parameters["weight"].detach()
    # Gemma's weights are differences from one.
    for each in (weight, 1 + weight.float()):
        made = NormModule(RMSNorm(each, float(eps)), kernels)
        if _is_same(module, made, len(weight), weight):
            return made
    return None


def _swiglu_module(module: nn.Module, make_linear: MakeLinear) -> nn.Module | None:
    linears = {name: child for name, child in module.named_children() if type(child) is nn.Linear}
    is_whole = sum(1 for _ in module.parameters()) == sum(1 for each in linears.values() for _ in each.parameters())
    if not is_whole or any(hasattr(each, WEIGHT_IS_READ) for each in linears.values()):
        return None
    if linears.keys() == {"gate_proj", "up_proj", "down_proj"}:
        gate_up = [linears["gate_proj"], linears["up_proj"]]
    elif linears.keys() == {"gate_up_proj", "down_proj"}:
        gate_up = halves(linears["gate_up_proj"])
    else:
        return None
    if gate_up[0].weight.shape != gate_up[1].weight.shape:
        return None
    made = SwiGLUModule(make_linear(gate_up, is_gate_up=True), make_linear([linears["down_proj"]]))
    if not _is_same(module, made, gate_up[0].in_features, gate_up[0].weight):
        return None
    drop_weights(module)
    return made


@torch.inference_mode()
def _is_same(module: nn.Module, made: Callable[[Tensor], Tensor], size: int, like: Tensor) -> bool:
    """Whether two modules give the same for random rows [1, rows, size], up to the rounding of their dtype."""
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 4, size, generator=generator).to(like.device, like.dtype)
    for scale in SCALES:
        try:
            expected: Any = module(rows * scale)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:  # it takes other rows
            logger.debug("%s is left alone: %s", type(module).__name__, error)
            return False
        found = made(rows * scale)
        if not isinstance(expected, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return False
        size_of_output = expected.float().abs().amax().clamp(min=torch.finfo(expected.dtype).tiny)
        difference = float(((found.float() - expected.float()).abs() / size_of_output).amax())
        if not difference <= TOLERANCES[like.dtype]:  # NaN is no small difference
            return False
    return True
