"""The arithmetic of quantized weights: each format's tensors of one layer, multiplied out in fp32.

Takes no package of the tool that wrote them. The results are the weights that the tool itself computes with, before
they are rounded to the model's dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

#: The tensors of one layer by the rest of their names, such as `.qweight`; and its quantization configuration.
Parts = Mapping[str, Tensor]
Dequantize = Callable[[Parts, Mapping[str, Any]], Tensor]

#: The values of 4 bits: sign, two of exponent, one of mantissa.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
#: AWQ's order of the eight columns in a word.
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
BITSANDBYTES_STATE = ".weight.quant_state.bitsandbytes__"


class UnknownFormat(ValueError):
    """Weights in a variant of their format that is not multiplied out here."""


def dequantize_fp8(parts: Parts, config: Mapping[str, Any]) -> Tensor:
    """Blocks, rows, or a whole tensor with a scale each."""
    scale = parts.get(".weight_scale_inv", parts.get(".weight_scale"))
    assert scale is not None
    return scaled(parts[".weight"].float(), scale.float(), config.get("weight_block_size"))


def scaled(weight: Tensor, scale: Tensor, block: Any = None) -> Tensor:
    """A weight [out, in] times scales of blocks of it; the last of a row or a column may be cut."""
    if scale.numel() == 1:
        return weight * scale.reshape(())
    if scale.dim() == 1:
        scale = scale[:, None]
    numbers = zip(weight.shape[-2:], scale.shape[-2:], strict=True)
    sizes = tuple(block or (-(-size // count) for size, count in numbers))
    wide = scale.repeat_interleave(sizes[0], -2).repeat_interleave(sizes[1], -1)
    return weight * wide[..., : weight.shape[-2], : weight.shape[-1]]


def dequantize_gptq(parts: Parts, config: Mapping[str, Any]) -> Tensor:
    """(q - zero) * scale of each group of input channels; the old format stores a zero less one."""
    bits = int(config.get("bits") or 4)
    if (groups := parts.get(".g_idx")) is not None:  # a layer may have bits of its own (`dynamic`)
        bits = 32 * parts[".qweight"].shape[0] // len(groups)
    weight = _unpacked(parts[".qweight"], bits, 0)  # [in, out]
    # The old format's word has 1 less in each of its numbers; a zero of 0 has borrowed from the number beside it.
    ones = 0 if config.get("checkpoint_format") == "gptq_v2" else sum(1 << shift for shift in range(0, 32, bits))
    zeros = _unpacked((parts[".qzeros"].long() + ones).to(torch.int32), bits, 1)
    size = int(config.get("group_size") or -1)
    size = weight.shape[0] if size < 0 else size
    groups = (torch.arange(weight.shape[0]) // size if groups is None else groups).long()
    scales = parts[".scales"].float()
    return ((weight - zeros[groups][:, : weight.shape[1]]).float() * scales[groups]).T.contiguous()


def dequantize_awq(parts: Parts, config: Mapping[str, Any]) -> Tensor:
    """(q - zero) * scale as in GPTQ, with the eight columns of a word in an order of their own."""
    if str(config.get("version", "gemm")).lower() != "gemm":
        raise UnknownFormat(f"AWQ of version {config.get('version')}")
    bits = int(config.get("bits") or 4)
    if bits != 4:
        raise UnknownFormat(f"AWQ of {bits} bits")
    weight, zeros = (_in_order(_unpacked(parts[name], bits, 1)) for name in (".qweight", ".qzeros"))
    scales = parts[".scales"].float()
    size = weight.shape[0] // scales.shape[0]
    repeated = (each.repeat_interleave(size, 0) for each in (zeros, scales))
    zero, scale = repeated
    return ((weight - zero).float() * scale).T.contiguous()


def _in_order(columns: Tensor) -> Tensor:
    words = columns.view(columns.shape[0], -1, len(AWQ_ORDER))
    return words[..., list(AWQ_ORDER)].reshape(columns.shape)


def dequantize_compressed(parts: Parts, config: Mapping[str, Any]) -> Tensor:
    """compressed-tensors: numbers packed into words of 32 bits, or plain int8 and fp8, with scales of any shape."""
    scale = parts[".weight_scale"].float()
    if ".weight_packed" not in parts:
        weight = parts[".weight"].float()
        zero = parts.get(".weight_zero_point")
        return scaled(weight if zero is None else weight - _spread(zero.float(), weight), scale, _block_of(config))
    if parts[".weight_packed"].dtype is torch.uint8:
        raise UnknownFormat("compressed-tensors of 4-bit floating point")
    bits, shape = _bits_of(config), tuple(parts[".weight_shape"].tolist())
    offset = 2 ** (bits - 1)
    weight = _unpacked(parts[".weight_packed"], bits, 1)[:, : shape[1]] - offset
    if (groups := parts.get(".weight_g_idx")) is not None and int(groups.min()) >= 0:
        raise UnknownFormat("compressed-tensors with reordered groups")
    if (zero := parts.get(".weight_zero_point")) is not None:
        if zero.dtype is torch.int32:
            zero = _unpacked(zero, bits, 0)[: shape[0]] - offset
        weight = weight - _spread(zero, weight)
    return scaled(weight.float(), scale)


def _spread(groups: Tensor, weight: Tensor) -> Tensor:
    """A number of each group, for each of its columns."""
    if groups.numel() == 1:
        return groups.reshape(())
    groups = groups if groups.dim() > 1 else groups[:, None]
    return groups.repeat_interleave(-(-weight.shape[1] // groups.shape[1]), 1)[:, : weight.shape[1]]


def _weights_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of the weights in compressed-tensors' groups, which must be alike."""
    groups = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
    kinds = {(group.get("num_bits"), str(group.get("block_structure"))) for group in groups}
    if len(kinds) != 1:
        raise UnknownFormat(f"compressed-tensors with {len(kinds)} kinds of weights")
    return groups[0]


def _bits_of(config: Mapping[str, Any]) -> int:
    bits = int(_weights_of(config).get("num_bits") or 0)
    if bits not in (2, 4, 8):
        raise UnknownFormat(f"compressed-tensors of {bits} bits")
    return bits


def _block_of(config: Mapping[str, Any]) -> Any:
    return _weights_of(config).get("block_structure")


def dequantize_bitsandbytes(parts: Parts, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG001
    """4 bits by a table of 16 values, or int8 by row."""
    if ".SCB" in parts:
        return parts[".weight"].float() * (parts[".SCB"].float()[:, None] / 127)
    state_name = next((name for name in parts if name.startswith(BITSANDBYTES_STATE)), None)
    if state_name is None:
        raise UnknownFormat("bitsandbytes without its state")
    state = json.loads(bytes(parts[state_name].tolist()))
    absmax = parts[".weight.absmax"]
    if ".weight.nested_absmax" in parts:
        nested = parts[".weight.nested_absmax"].repeat_interleave(int(state["nested_blocksize"]))[: absmax.numel()]
        absmax = parts[".weight.nested_quant_map"][absmax.long()] * nested + float(state["nested_offset"])
    packed = parts[".weight"].contiguous().view(torch.uint8).reshape(-1)  # in whatever dtype it was stored
    indices = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1).long()
    values = parts[".weight.quant_map"][indices] * absmax.repeat_interleave(int(state["blocksize"]))[: len(indices)]
    dtype: torch.dtype = getattr(torch, state["dtype"])
    return values[: torch.Size(state["shape"]).numel()].reshape(state["shape"]).to(dtype).float()


def dequantize_mxfp4(parts: Parts, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG001
    """Blocks of 32 values of 4 bits with a power of two; experts [experts, in, out]."""
    blocks, scales = parts["_blocks"], parts["_scales"]
    indices = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2).long()
    values = torch.ldexp(torch.tensor(FP4_VALUES)[indices], scales.int()[..., None] - 127)
    return values.flatten(-2).transpose(-1, -2).contiguous()


def _unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unsigned numbers of some bits out of words of 32, which stand in a row along a dimension."""
    if 32 % bits:
        raise UnknownFormat(f"{bits} bits, which cross the borders of words")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    numbers: Tensor = (words.unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.dim() - dim - 1))) & (2**bits - 1)
    return numbers.flatten(dim, dim + 1)
