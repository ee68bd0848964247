"""The examination of a whole model folder: producer and engine call the same one, each before it does anything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.config import check_config
from models.checkpoint.config_values import check_token_ids
from models.checkpoint.entries import names_in
from models.checkpoint.small_files import CheckpointProblem, is_file, read_json_object
from models.checkpoint.tokenizer_files import check_tokenizer
from models.checkpoint.weights import check_weights, weights_file

#: Files of folders that are not a model by themselves, and what to do with each.
OTHER_FOLDERS = {
    "model_index.json": "is a pipeline of diffusers, not a language model; give a causal language model",
    "params.json": "is a model in its makers' own format; give its Transformers files (with a config.json)",
    "genai_config.json": "is an ONNX model; give its Transformers files (with a config.json and safetensors)",
}


def check_folder(folder: Path) -> None:
    """Raises `CheckpointProblem` for a model that no engine could load. Reads small files and headers of weights."""
    config = _configuration(folder)
    weights_file(folder, config)  # other formats are named before anything else
    _check_small_files(folder, config)
    check_weights(folder, config)


def check_small_files(folder: Path) -> dict[str, Any]:
    """The model's configuration. Raises `CheckpointProblem` for anything wrong but the weights."""
    config = _configuration(folder)
    _check_small_files(folder, config)
    return config


def _check_small_files(folder: Path, config: Mapping[str, Any]) -> None:
    check_config(folder / "config.json", config)
    if is_file(generation := folder / "generation_config.json"):
        check_token_ids(generation, read_json_object(generation))
    check_tokenizer(folder)


def _configuration(folder: Path) -> dict[str, Any]:
    names = _names_in(folder)
    if "adapter_config.json" in names:
        raise CheckpointProblem(_adapter(folder))
    if not is_file(folder / "config.json"):
        raise CheckpointProblem(_without_config(folder, names))
    return read_json_object(folder / "config.json")


def _names_in(folder: Path) -> set[str]:
    if is_file(folder):
        raise CheckpointProblem(
            f"{folder} is a file; give the folder that holds the model's config.json and safetensors"
        )
    return names_in(folder)


def _adapter(folder: Path) -> str:
    """The sentence about an adapter, with the model that it belongs to."""
    config = read_json_object(folder / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    kind = str(config.get("peft_type") or "PEFT")
    about = f" of {str(base)[:200]}" if base else ""
    return (
        f"{folder} is an adapter ({kind}){about} (adapter_config.json), not a model; merge it into its model with "
        "PEFT (merge_and_unload, save_pretrained) and give that folder"
    )


def _without_config(folder: Path, names: set[str]) -> str:
    """The sentence about a folder that has no configuration, with the folder that may have been meant."""
    if not names:
        return f"unknown model {str(folder)!r}: the folder is empty; give a Transformers model folder"
    unknown = f"unknown model {str(folder)!r}: the folder has no config.json"
    if inner := _models_inside(folder):
        meant = ", ".join(map(str, inner[:3]))
        return f"{unknown}, but a folder in it has: give {meant}"
    for name, sentence in OTHER_FOLDERS.items():
        if name in names:
            return f"{unknown} but {name}: it {sentence}"
    if files := sorted(name for name in names if name.endswith(".gguf")):
        return f"{unknown} but {files[0]}: GGUF is not loaded; give the Transformers model that it was made from"
    return f"{unknown}; give a Transformers model folder"


def _models_inside(folder: Path) -> list[Path]:
    """The models one or two folders below, as in an unpacked archive or the hub's cache."""
    try:
        return sorted(path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json"))
    except OSError:
        return []
