"""Linear layers in int8: weights by output channel, activations by row, products by oneDNN.

Every row has a scale of its own and the sums are of whole numbers, so a row's bits do not depend on its
neighbours. What int8 costs in accuracy is in `docs/performance.md`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.cpu.kernel_linear import KernelLinear
from worker.engine.cpu.kernels import After

#: The byte that stands for zero in an activation.
ZERO = 128


class Int8Linear(KernelLinear):
    """Stands in for one or several `nn.Linear` on the CPU in inference."""

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias = bias
        quantised, self.scales = quantise_weight(weight)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(quantised, None)

    def _multiply(self, rows: Tensor, after: After, outputs: int, other: Tensor | None = None) -> Tensor:
        quantised, scales = self._kernels.quantise(rows)
        products: Tensor = torch.ops.onednn.qlinear_pointwise(
            quantised, 1.0, ZERO, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return self._kernels.finish(products, scales, self.bias, after, outputs, other)


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out_features, in_features], and the scale of each output channel [out_features]."""
    scales = weight.float().abs().amax(1).clamp_min(1e-12) / 127
    return (weight.float() / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales
