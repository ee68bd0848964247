"""Makes the functions that a model's own code calls batch-invariant on a CPU.

Transformers' routers, gates and recurrent layers call torch's functions on bare tensors, which no replaced module
catches: elementwise functions are padded to whole vectors, and matmuls with a parameter go through a packed layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from worker.engine.batch_invariance import aligned
from worker.engine.model.experts import as_linear, with_more_rows
from worker.engine.model.linear import Linear

#: Makes a packed layer of a linear one.
MakeOne = Callable[[nn.Linear], Linear]

ELEMENTWISE = frozenset(
    {
        *(torch.sigmoid, torch.exp, torch.exp2, torch.tanh, torch.sinh, torch.cosh),
        *(Tensor.sigmoid, Tensor.exp, Tensor.exp2, Tensor.tanh, Tensor.sinh, Tensor.cosh),
        *(F.softplus, F.silu, F.gelu, F.mish, F.sigmoid, F.tanh),
    }
)
MATMULS = frozenset({torch.bmm, Tensor.bmm, torch.matmul, Tensor.matmul, Tensor.__matmul__})
CONVERSIONS = frozenset({Tensor.float, Tensor.to, Tensor.type})


#: Around code that is batch-invariant by itself: each of torch's functions costs the mode microseconds.
without_mode = torch._C.DisableTorchFunction


class BatchInvariantMode(TorchFunctionMode):
    """Active while the model computes a step."""

    def __init__(self, make_linear: MakeOne) -> None:
        super().__init__()
        self._make_linear = make_linear
        self._linears: dict[int, Linear] = {}  # by the id of their weight
        self._converted: dict[tuple[int, torch.dtype], Tensor] = {}  # weights in another dtype
        self._kept: dict[int, Tensor] = {}  # the weights, so that their ids stay theirs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in ELEMENTWISE and "out" not in options and args and args[0].device.type == "cpu":
            return aligned(lambda inputs: func(inputs, *args[1:], **options), args[0])
        if func in MATMULS and (output := _matmul_with_vectors(*args, **options)) is not None:
            return output
        if func is F.linear and self._is_weight(weight := _argument(args, options, 1, "weight")):
            return self._linear(_argument(args, options, 0, "input"), weight, _argument(args, options, 2, "bias"))
        if func is F.conv1d and (output := _depthwise_convolution(*args, **options)) is not None:
            return output
        if func in CONVERSIONS and isinstance(args[0], nn.Parameter) and args[0].dim() == 2:
            return self._convert(args[0], func(*args, **options))
        return func(*args, **options)

    def _is_weight(self, weight: Tensor) -> bool:
        is_known = self._kept.get(id(weight)) is weight or isinstance(weight, nn.Parameter)
        return is_known and weight.dim() == 2 and weight.device.type == "cpu"

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if id(weight) not in self._linears:
            self._kept[id(weight)] = weight
            self._linears[id(weight)] = self._make_linear(as_linear(weight.detach(), bias))
        linear, rows = self._linears[id(weight)], inputs.reshape(-1, inputs.shape[-1])
        return with_more_rows(linear, rows).view(*inputs.shape[:-1], linear.out_features)

    def _convert(self, weight: Tensor, converted: Tensor) -> Tensor:
        """One and the same tensor for a weight in another dtype, so that its packed layer is found again."""
        if converted is weight or converted.dtype is weight.dtype:
            return converted
        kept = self._converted.setdefault((id(weight), converted.dtype), converted)
        self._kept[id(weight)] = weight
        self._kept[id(kept)] = kept
        return kept


def _matmul_with_vectors(*args: Any, **options: Any) -> Tensor | None:
    """The matmul of a batch of matrices with a vector each, a sum for each element; None for others.

    A recurrent layer reads the states of a step so. torch rounds those of a sequence by how many others there are.
    """
    if options or len(args) != 2 or not all(isinstance(each, Tensor) and each.device.type == "cpu" for each in args):
        return None
    matrices, vectors = args
    if matrices.dim() < 3 or vectors.shape != (*matrices.shape[:-2], matrices.shape[-1], 1):
        return None
    if matrices.dtype is not vectors.dtype or not matrices.is_floating_point():
        return None
    sums: Tensor = (matrices.float() * vectors.float().transpose(-1, -2)).sum(-1, keepdim=True)
    return sums.to(matrices.dtype)


def _depthwise_convolution(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor | None:
    """A convolution of each channel by itself, its terms added in one order; None for one of another kind.

    In fp32 torch's rounds a prompt's token by the number of tokens beside it.
    """
    sizes = [size[0] if isinstance(size, tuple) else size for size in (stride, dilation, padding)]
    if weight.shape[1] != 1 or groups != len(weight) or sizes[:2] != [1, 1] or not isinstance(sizes[2], int):
        return None
    padded = F.pad(inputs, (sizes[2], sizes[2])).float()
    length = padded.shape[-1] - weight.shape[-1] + 1
    factors = weight[:, 0].float()
    output = padded[..., :length] * factors[:, :1]
    for index in range(1, weight.shape[-1]):
        output += padded[..., index : index + length] * factors[:, index : index + 1]
    if bias is not None:
        output += bias.float()[:, None]
    return output.to(inputs.dtype)


def _argument(args: tuple[Any, ...], options: Mapping[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else options.get(name)
