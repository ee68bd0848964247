"""Linear layers whose weights oneDNN has packed once for the CPU.

Packing saves the reordering that `F.linear` does at every call (benchmarks/engine.py measures it), and its
products give each row the same bits whatever the other rows are, which plain fp32 products do not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.engine.replace_modules import replace_children


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` on the CPU in inference; the weight can no longer be read back."""

    weight: Tensor

    def __init__(self, linear: nn.Module) -> None:
        assert isinstance(linear, nn.Linear)
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")
        return outputs


def can_pack(dtype: torch.dtype) -> bool:
    """True where this build of torch and this processor have the packed products for the dtype."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


def pack_linears(model: nn.Module) -> int:
    """Replaces every `nn.Linear` of the model; returns how many."""
    return replace_children(model, lambda _, child: type(child) is nn.Linear, PackedLinear)
