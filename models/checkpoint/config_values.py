"""The values of a model's configuration: whether the common ones have their type and a reasonable size.

A field that is absent or null has its class's default. Fields of single architectures are left to Transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.small_files import wrong_value
from models.checkpoint.transformers_source.looked_up_names import ACTIVATIONS, ROPES

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
DTYPES = ("float64", "float32", "float16", "bfloat16", "double", "float", "half")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_values(path: Path, text_config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for a value of another kind than Transformers takes."""
    for name, value in text_config.items():
        if value is None:
            continue
        if name in COUNTS and not isinstance(value, list) and not _is_count(value):
            raise wrong_value(path, name, "a whole number above 0", value)
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value)):
            raise wrong_value(path, name, "a number", value)
        if name in FLAGS and not isinstance(value, bool):
            raise wrong_value(path, name, "true or false", value)
        if name in ACTIVATIONS and not isinstance(value, str):
            raise wrong_value(path, name, "a name", value)
        if name in ROPES and not isinstance(value, dict):
            raise wrong_value(path, name, "an object", value)
        if name in ("dtype", "torch_dtype") and not isinstance(value, dict) and value not in DTYPES:
            raise wrong_value(path, name, f"one of {', '.join(DTYPES)}", value)
    heads, kv_heads = text_config.get("num_attention_heads"), text_config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise wrong_value(path, "num_attention_heads", f"a multiple of num_key_value_heads ({kv_heads})", heads)


def check_token_ids(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for special token ids that are not numbers. A negative one stands for none."""
    for name in TOKEN_IDS:
        value = config.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int and abs(token_id) <= LARGEST_COUNT for token_id in ids):
            raise wrong_value(path, name, "a token id or a list of them", value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_COUNT


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
