"""The quantization that a `config.json` describes, and whether the engine can dequantize such weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.safetensors_header import TensorInfo
from models.checkpoint.small_files import CheckpointProblem

#: Methods whose weights are dequantized when the model is loaded, with the ends of the names of their tensors: the one
#: that tells a quantized layer is the first.
ENDS: dict[str, tuple[str, ...]] = {
    "fp8": (".weight_scale_inv", ".weight_scale", ".weight", ".input_scale", ".activation_scale"),
    "gptq": (".qweight", ".qzeros", ".scales", ".g_idx"),
    "awq": (".qweight", ".qzeros", ".scales"),
    "compressed-tensors": (
        ".weight_scale", ".weight_packed", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".weight",
        ".input_scale", ".input_zero_point", ".weight_global_scale", ".input_global_scale",
    ),
    "bitsandbytes": (
        ".weight.quant_map", ".SCB", ".weight.absmax", ".weight.nested_absmax", ".weight.nested_quant_map",
        ".weight_format", ".weight",
    ),
    "mxfp4": ("_blocks", "_scales"),
}  # fmt: skip
SUPPORTED_METHODS = frozenset(ENDS)

#: Dtypes of numbers that mean nothing without their scale.
NARROW = ("F8", "F6", "F4", "I8", "U8", "I32", "U32")

STATE = re.compile(r"(?P<layer>.*)(?P<end>\.weight\.quant_state\.bitsandbytes__\w+)")


def quantization_method(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The method and its configuration; an empty name where the weights are not quantized."""
    for name in ("quantization_config", "compression_config", "quantization"):
        for part in (config, config.get("text_config")):
            given = part.get(name) if isinstance(part, dict) else None
            if given:
                return (_method(name, given), given) if isinstance(given, dict) else (name, {})
    return "", {}


def quantization_name(config: Mapping[str, Any]) -> str:
    """The method, with its bits where they are given."""
    method, given = quantization_method(config)
    bits = given.get("bits") or (4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else None)
    return f"{method}, {bits} bits" if bits else method


def _method(name: str, given: Mapping[str, Any]) -> str:
    method = given.get("quant_method") or given.get("quant_algo") or ("mlx" if name == "quantization" else "")
    if not method and any(str(key).startswith(("load_in_", "_load_in_")) for key in given):
        method = "bitsandbytes"
    return str(method or name)


def quantized_layers(names: Iterable[str], method: str) -> dict[str, dict[str, str]]:
    """Layer -> end of a name -> tensor, of the layers that are quantized."""
    ends = ENDS[method]
    marks = ends[:2] if method in ("fp8", "bitsandbytes") else ends[:1]  # that only quantized layers have
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        for layer, end in _split(name, ends):
            parts.setdefault(layer, {})[end] = name
    return {layer: found for layer, found in parts.items() if set(found) & set(marks)}


def check_scales(folder: Path, tensors: Mapping[str, TensorInfo], method: str) -> None:
    """Raises `CheckpointProblem` for numbers of a few bits that have scales which no format of ours knows."""
    taken = {name for parts in quantized_layers(tensors, method).values() for name in parts.values()}
    left = {name: tensor for name, tensor in tensors.items() if name not in taken}
    scales = [name for name in left if "scale" in name]
    for name in (name for name, tensor in left.items() if tensor.dtype.startswith(NARROW)):
        layer = name.removesuffix(".weight")
        found = next((scale for scale in scales if scale.startswith(layer) and scale != name), None)
        if found is not None:
            raise CheckpointProblem(
                f"{folder}: {name} is quantized, and its scale {found} is of a form that is not multiplied out here; "
                "take the model that it was made from"
            )


def _split(name: str, ends: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if match := STATE.fullmatch(name):
        yield match["layer"], match["end"]
        return
    for end in ends:
        if name.endswith(end):
            yield name.removesuffix(end), end
            return
