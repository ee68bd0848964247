"""Reads a folder of quantized weights as full-precision ones, tensor by tensor.

A model whose weights were quantized to 4 bits takes four times its folder's memory afterwards; the log says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.checkpoint.quantization import quantization_method, quantization_name
from models.checkpoint.small_files import read_json_object
from models.checkpoint.weights import loaded_files
from worker.engine.loading.quantized_formats import (
    Dequantize,
    UnknownFormat,
    dequantize_awq,
    dequantize_bitsandbytes,
    dequantize_compressed,
    dequantize_fp8,
    dequantize_gptq,
    dequantize_mxfp4,
)
from worker.engine.request import ModelUnavailable

logger = logging.getLogger(__name__)

#: Method -> the ends of the names of its tensors, the one that tells a quantized layer first, and the arithmetic.
FORMATS: dict[str, tuple[tuple[str, ...], Dequantize]] = {
    "fp8": ((".weight_scale_inv", ".weight_scale", ".weight", ".input_scale", ".activation_scale"), dequantize_fp8),
    "gptq": ((".qweight", ".qzeros", ".scales", ".g_idx"), dequantize_gptq),
    "awq": ((".qweight", ".qzeros", ".scales"), dequantize_awq),
    "compressed-tensors": (
        (
            ".weight_scale", ".weight_packed", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight",
            ".input_scale", ".input_zero_point", ".weight_global_scale", ".input_global_scale",
        ),
        dequantize_compressed,
    ),
    "bitsandbytes": (
        (
            ".weight.quant_map", ".SCB", ".weight.absmax", ".weight.nested_absmax", ".weight.nested_quant_map",
            ".weight_format", ".weight",
        ),
        dequantize_bitsandbytes,
    ),
    "mxfp4": (("_blocks", "_scales"), dequantize_mxfp4),
}  # fmt: skip

#: Dtypes of numbers that mean nothing without their scale.
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32)

STATE = re.compile(r"(?P<layer>.*)(?P<end>\.weight\.quant_state\.bitsandbytes__\w+)")


def dequantized_weights(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The folder's tensors by name, each quantized layer's multiplied out to `dtype`. Raises `ModelUnavailable`."""
    method, quantization = quantization_method(config)
    ends, dequantize = FORMATS[method]
    with ExitStack() as files:
        names = _names(folder, files)
        layers = _quantized_layers(names, method, ends)
        taken = {name for parts in layers.values() for name in parts.values()}
        weights = {name: file.get_tensor(name) for name, file in names.items() if name not in taken}
        _check_left(folder, weights)
        for layer, parts in layers.items():
            tensors = {end: names[name].get_tensor(name) for end, name in parts.items()}
            weight_name = layer if method == "mxfp4" else f"{layer}.weight"
            try:
                weights[weight_name] = dequantize(tensors, quantization).to(dtype)
            except (UnknownFormat, KeyError, RuntimeError, ValueError, AssertionError) as error:
                raise ModelUnavailable(
                    f"{folder}: the quantized weights of {layer} ({quantization_name(config)}) cannot be multiplied "
                    f"out: {type(error).__name__}: {error}; take the model that they were made from"
                ) from error
    num_bytes = sum(weight.nbytes for weight in weights.values())
    logger.warning(
        "the weights are quantized (%s) and are multiplied out to %s: %.1f GB of memory",
        quantization_name(config), str(dtype).removeprefix("torch."), num_bytes / 1e9,
    )  # fmt: skip
    return weights


def _check_left(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises `ModelUnavailable` for numbers of a few bits that have scales which no format of ours knows."""
    scales = [name for name in weights if "scale" in name]
    for name, weight in weights.items():
        layer = name.removesuffix(".weight")
        found = next((scale for scale in scales if scale.startswith(layer) and scale != name), None)
        if weight.dtype in NARROW and found is not None:
            raise ModelUnavailable(
                f"{folder}: {name} is quantized, and its scale {found} is of a form that is not multiplied out here; "
                "take the model that it was made from"
            )


def _names(folder: Path, files: ExitStack) -> dict[str, Any]:
    """The open file of each tensor."""
    found: dict[str, Any] = {}
    for path in loaded_files(folder, read_json_object(folder / "config.json")):
        file: Any = files.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _quantized_layers(names: Mapping[str, Any], method: str, ends: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Layer -> end of a name -> tensor, of the layers that are quantized."""
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        for layer, end in _split(name, ends):
            parts.setdefault(layer, {})[end] = name
    return {layer: found for layer, found in parts.items() if set(found) & set(_marks(method, ends))}


def _marks(method: str, ends: tuple[str, ...]) -> tuple[str, ...]:
    """The ends that only quantized layers have."""
    return ends[:2] if method in ("fp8", "bitsandbytes") else ends[:1]


def _split(name: str, ends: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if match := STATE.fullmatch(name):
        yield match["layer"], match["end"]
        return
    for end in ends:
        if name.endswith(end):
            yield name.removesuffix(end), end
            return
