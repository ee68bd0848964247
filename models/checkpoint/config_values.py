"""The values of a model's configuration: whether those that every model has are of their kind, and not beyond reason.

A field that is absent or null has its class's default. Fields of single architectures are left to Transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.small_files import CheckpointProblem

#: Whole numbers above 0; some architectures have a list of them, a number for each layer.
COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings", "head_dim", "n_embd", "n_layer", "n_head", "n_positions",
)  # fmt: skip
LARGEST_COUNT = 2**31 - 1
NUMBERS = (
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta", "initializer_range", "attention_dropout",
)  # fmt: skip
FLAGS = ("tie_word_embeddings", "use_cache", "use_sliding_window")
NAMES = ("hidden_act", "hidden_activation", "activation_function")
ROPES = ("rope_scaling", "rope_parameters")
DTYPES = ("float64", "float32", "float16", "bfloat16", "double", "float", "half")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_values(path: Path, text_config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for a value of another kind than Transformers takes."""
    for name, value in text_config.items():
        if value is None:
            continue
        if name in COUNTS and not isinstance(value, list) and not _is_count(value):
            raise _wrong(path, name, "a whole number above 0", value)
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value)):
            raise _wrong(path, name, "a number", value)
        if name in FLAGS and not isinstance(value, bool):
            raise _wrong(path, name, "true or false", value)
        if name in NAMES and not isinstance(value, str):
            raise _wrong(path, name, "a name", value)
        if name in ROPES and not isinstance(value, dict):
            raise _wrong(path, name, "an object", value)
        if name in ("dtype", "torch_dtype") and not isinstance(value, dict) and value not in DTYPES:
            raise _wrong(path, name, f"one of {', '.join(DTYPES)}", value)
    heads, kv_heads = text_config.get("num_attention_heads"), text_config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise _wrong(path, "num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})", heads)


def check_token_ids(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for special token ids that are not numbers. A negative one means none to some."""
    for name in TOKEN_IDS:
        value = config.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int and abs(token_id) <= LARGEST_COUNT for token_id in ids):
            raise _wrong(path, name, "a token id or a list of them", value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_COUNT


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _wrong(path: Path, name: str, kind: str, value: Any) -> CheckpointProblem:
    return CheckpointProblem(f"{path}: {name} must be {kind}, got {str(value)[:100]!r}; correct or download the file")
