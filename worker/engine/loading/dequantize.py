"""Reads a folder of quantized weights as full-precision ones, tensor by tensor.

A model whose weights were quantized to 4 bits takes four times its folder's memory afterwards; the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.checkpoint.quantization import quantization_method, quantization_name, quantized_layers
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

#: Method -> the arithmetic.
FORMATS: dict[str, Dequantize] = {
    "fp8": dequantize_fp8,
    "gptq": dequantize_gptq,
    "awq": dequantize_awq,
    "compressed-tensors": dequantize_compressed,
    "bitsandbytes": dequantize_bitsandbytes,
    "mxfp4": dequantize_mxfp4,
}


def dequantized_weights(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The folder's tensors by name, each quantized layer's multiplied out to `dtype`. Raises `ModelUnavailable`."""
    method, quantization = quantization_method(config)
    dequantize = FORMATS[method]
    with ExitStack() as files:
        names = _names(folder, files)
        layers = quantized_layers(names, method)
        taken = {name for parts in layers.values() for name in parts.values()}
        weights = {name: file.get_tensor(name) for name, file in names.items() if name not in taken}
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


def _names(folder: Path, files: ExitStack) -> dict[str, Any]:
    """The open file of each tensor."""
    found: dict[str, Any] = {}
    for path in loaded_files(folder, read_json_object(folder / "config.json")):
        file: Any = files.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found
