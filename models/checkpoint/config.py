"""A model's `config.json`: whether it describes a causal language model that the engine can decode."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.checkpoint.config_values import check_token_ids, check_values
from models.checkpoint.quantization import SUPPORTED_METHODS, quantization_method, quantization_name
from models.checkpoint.small_files import CheckpointProblem, is_file
from models.checkpoint.transformers_source.architectures import known_architectures
from models.checkpoint.transformers_source.looked_up_names import check_names, rope_parts

#: Rope variants whose angles change with a sequence's length, so that Transformers takes them from the longest of a
#: batch. Those of `dynamic` change beyond the model's window alone, where nothing is decoded.
LENGTH_DEPENDENT_ROPE = frozenset({"longrope", "su"})

#: Configurations of quantized weights outside of `config.json`, and the tools that write them.
QUANTIZATION_FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}

#: Ends of the class names of causal language models.
CAUSAL_CLASSES = ("forcausallm", "lmheadmodel", "modelwithlmhead", "withlmheadmodel", "generationdecoder")

FULL_PRECISION = "take the unquantized model that it was made from (--quantize int8 quantizes one on a CPU)"


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for the `config.json` at a path if no engine could load its model."""
    text_config = text_part(config)
    _check_quantization(path, config)
    _check_architecture(path, config)
    check_values(path, text_config)
    check_token_ids(path, config)
    check_names(path, text_config)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the language model inside a model of several kinds of input."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def packing_problem(text_config: Mapping[str, Any], max_model_len: int | None = None) -> str | None:
    """The sentence about positions that depend on the other rows of a batch; None where rows may be packed."""
    for part in rope_parts(text_config):
        kinds = {str(part.get(key)) for key in ("rope_type", "type")} & LENGTH_DEPENDENT_ROPE
        first = part.get("original_max_position_embeddings") or text_config.get("original_max_position_embeddings")
        windows = [
            length for length in (max_model_len, text_config.get("max_position_embeddings")) if type(length) is int
        ]
        if kinds and not (isinstance(first, int) and windows and min(windows) <= first):
            about = f"its rotary positions ({', '.join(sorted(kinds))}) depend on the longest sequence of a batch"
            return f"{about}; up to --max-model-len {first} they do not" if isinstance(first, int) else about
    return None


def _check_quantization(path: Path, config: Mapping[str, Any]) -> None:
    """MLX writes `quantization`, everybody else `quantization_config`, some a file of their own."""
    method, given = quantization_method(config)
    if method == "compressed-tensors" and given.get("transform_config"):
        raise CheckpointProblem(
            f"{path}: the weights are quantized and rotated (transform_config), which the engine does not compute; "
            f"{FULL_PRECISION}"
        )
    if method in SUPPORTED_METHODS:
        return
    if method:
        raise CheckpointProblem(
            f"{path}: the weights are quantized ({quantization_name(config)}), which the engine does not "
            f"compute; {FULL_PRECISION}"
        )
    if isinstance(config.get("quantization_config"), dict):
        raise CheckpointProblem(f"{path}: quantization_config names no quant_method; remove it, or download the file")
    for file, tool in QUANTIZATION_FILES.items():
        if is_file(path.parent / file):
            raise CheckpointProblem(
                f"{path.parent / file}: the weights are quantized ({tool}), which the engine does not compute; "
                f"{FULL_PRECISION}"
            )


def _check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointProblem(
            f"{path} has no model_type, so it is not a Transformers configuration; give a model folder of Transformers"
        )
    if config.get("is_encoder_decoder") not in (None, False):
        raise CheckpointProblem(
            f"{path}: {model_type!r} is an encoder-decoder; only causal (decoder-only) language models are decoded"
        )
    # Qwen2-VL's and Qwen2.5-VL's configurations have the fields of their text part among their own.
    has_text = isinstance(config.get("text_config"), dict) or {"vision_config", "hidden_size"} <= config.keys()
    _check_model_type(path, model_type, has_code="auto_map" in config, has_text=has_text)
    if model_type in known_architectures().conditional and has_text:
        return
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointProblem(f"{path}: architectures must be a list of names, got {str(names)[:100]!r}")
    usual = known_architectures().causal.get(model_type)
    if names and not any(name == usual or name.lower().endswith(CAUSAL_CLASSES) for name in names):
        raise CheckpointProblem(
            f"{path}: its weights are those of {', '.join(names)[:200]}, which is not a causal language model; "
            f"give one of {usual or 'a causal language model'}"
        )


def _check_model_type(path: Path, model_type: str, *, has_code: bool, has_text: bool) -> None:
    """Says nothing where the tables of Transformers cannot be read: the engine then finds out."""
    known = known_architectures()
    if not known.causal or model_type in known.causal:
        return
    if model_type in known.conditional and has_text:
        return
    if model_type in known.configs:
        raise CheckpointProblem(
            f"{path}: {model_type!r} is not a causal language model in Transformers {version('transformers')}; "
            "only causal language models are decoded"
        )
    if has_code:
        raise CheckpointProblem(
            f"{path}: {model_type!r} needs the code of its repository, which is never run; "
            "give a model that Transformers knows by itself"
        )
    raise CheckpointProblem(
        f"{path}: Transformers {version('transformers')} does not know the model type {model_type!r}; "
        "check the spelling, or upgrade transformers on producer and workers"
    )
