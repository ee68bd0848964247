"""A LoRA adapter's folder as PEFT writes it: whether it can be merged into a model, and its hash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.deciding_files import file_hash
from models.checkpoint.entries import names_in
from models.checkpoint.safetensors_header import read_header
from models.checkpoint.small_files import CheckpointProblem, is_file, read_json_object

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Variants of LoRA that compute more than a product of two matrices.
OTHER_VARIANTS = (
    "use_dora", "use_qalora", "lora_bias", "megatron_config", "trainable_token_indices", "target_parameters",
    "arrow_config", "alora_invocation_tokens", "layer_replication",
)  # fmt: skip

#: Initializations that take a part out of the model's own weights: their adapters fit the remaining part alone.
OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_adapter(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter. Raises `CheckpointProblem` for one that cannot be merged."""
    if not folder.is_dir():
        raise CheckpointProblem(f"the adapter {str(folder)!r} is not a folder; give one with {CONFIG} and {WEIGHTS}")
    names_in(folder)
    for name in (CONFIG, WEIGHTS):
        if not is_file(folder / name):
            raise CheckpointProblem(f"the adapter {folder} has no {name}; save it with PEFT's save_pretrained")
    config = read_json_object(folder / CONFIG)
    path = folder / CONFIG
    if str(config.get("peft_type")).upper() != "LORA":
        raise CheckpointProblem(f"{path}: peft_type is {str(config.get('peft_type'))[:100]}; only LORA can be merged")
    if found := [name for name in OTHER_VARIANTS if config.get(name)]:
        raise CheckpointProblem(f"{path}: {found[0]} is not merged here; merge it with PEFT (merge_and_unload)")
    if config.get("bias") not in (None, "none"):
        raise CheckpointProblem(f"{path}: its biases are trained too; merge it with PEFT (merge_and_unload)")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(OTHER_BASES):
        raise CheckpointProblem(
            f"{path}: init_lora_weights is {begun[:100]}, which changes the model too; save it with PEFT's "
            "path_initial_model_for_weight_conversion, or merge it there"
        )
    if not _is_number(alpha := config.get("lora_alpha")):
        raise CheckpointProblem(f"{path}: lora_alpha must be a number, got {str(alpha)[:100]!r}; download it again")
    for name in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(name) or {}
        names = patterns if name == "alpha_pattern" else ()  # a rank is that of the matrices
        if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", pattern) for pattern in names):
            raise CheckpointProblem(f"{path}: {name} has more than names of modules; merge it with PEFT")
        if wrong := [value for value in patterns.values() if not _is_number(value)]:
            raise CheckpointProblem(f"{path}: {name} must have numbers, got {str(wrong[0])[:100]!r}; download it again")
    if not read_header(folder / WEIGHTS):
        raise CheckpointProblem(f"{folder / WEIGHTS} holds no tensor; download it again")
    return config


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def adapter_hash(folder: Path) -> str:
    """One hash of the adapter's configuration and weights. Raises `CheckpointProblem`."""
    return file_hash([folder / CONFIG, folder / WEIGHTS])


def scale_of(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The factor of a module's two matrices. Of several patterns that name the module PEFT takes the first."""
    patterns = config.get("alpha_pattern") or {}
    named = (value for pattern, value in patterns.items() if f".{module}".endswith(f".{pattern}"))
    return float(next(named, config["lora_alpha"])) / (math.sqrt(rank) if config.get("use_rslora") else rank)
