"""The quantization that a `config.json` describes, and whether the engine can dequantize such weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Methods whose weights are dequantized when the model is loaded.
SUPPORTED_METHODS = frozenset({"fp8", "gptq", "awq", "compressed-tensors", "bitsandbytes", "mxfp4"})


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
