"""A model's weights: one safetensors file, or the shards that its index names; examined by their headers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.checkpoint.config import FULL_PRECISION
from models.checkpoint.entries import check_link
from models.checkpoint.quantization import SUPPORTED_METHODS, check_scales, quantization_method
from models.checkpoint.safetensors_header import TensorInfo, read_header
from models.checkpoint.small_files import CheckpointProblem, first_names, is_file, read_json_object
from models.checkpoint.weight_shapes import check_shapes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

#: Weights of other formats, by their suffixes.
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".npz", ".nemo")
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".tmp", ".download")

QUANTIZED_NAMES = (".qweight", ".qzeros", ".weight_packed", ".weight_scale_inv", ".SCB", ".absmax", "_blocks")
WEIGHTS_SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
MAX_SHARDS, MAX_TENSORS = 10_000, 1_000_000


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointProblem` for weights that are absent, damaged, quantized or of another configuration."""
    tensors = _tensors_of(folder, weights_file(folder, config))
    method, _ = quantization_method(config)
    if method in SUPPORTED_METHODS:
        check_scales(folder, tensors, method)
    else:
        _check_precision(folder, tensors)
    check_shapes(folder, tensors, config)


def weights_file(folder: Path, config: Mapping[str, Any]) -> Path:
    """The file that Transformers begins with: the weights, or the index of their shards. Raises `CheckpointProblem`."""
    named = config.get("transformers_weights")
    if named is not None and not isinstance(named, str):
        raise CheckpointProblem(f"{folder / 'config.json'}: transformers_weights must be a name, got {named!r}")
    for name in (named,) if named else (SINGLE, INDEX):
        _check_inside(folder / "config.json", name, (WEIGHTS_SUFFIX, INDEX_SUFFIX))
        if is_file(folder / name):
            return folder / name
        if (folder / name).is_dir():
            raise CheckpointProblem(f"{folder / name} is a folder, not a file of weights; download it again")
    raise CheckpointProblem(_absence(folder))


def shards_of(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index names it. Raises `CheckpointProblem`."""
    weight_map = read_json_object(index, is_large=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointProblem(f"{index} has no weight_map from tensors to files; download it again")
    shards = set(weight_map.values())
    if len(shards) > MAX_SHARDS:
        raise CheckpointProblem(f"{index} names {len(shards):,} files, more than {MAX_SHARDS:,}; download it again")
    for name in shards:
        _check_inside(index, name, (WEIGHTS_SUFFIX,))
    return weight_map


def loaded_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The weights that Transformers loads, in the order of their names. Raises `CheckpointProblem`."""
    file = weights_file(folder, config)
    if not file.name.endswith(".json"):
        return [file]
    return [folder / name for name in sorted(set(shards_of(file).values()))]


def _tensors_of(folder: Path, file: Path) -> dict[str, TensorInfo]:
    """The tensors of all shards, each in the shard that the index names."""
    if not file.name.endswith(".json"):
        return _header(folder, file)
    weight_map = shards_of(file)
    names_of_shard: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        names_of_shard.setdefault(shard, []).append(name)
    _check_presence(folder, file, sorted(names_of_shard))
    tensors: dict[str, TensorInfo] = {}
    for shard, names in sorted(names_of_shard.items()):
        header = _header(folder, folder / shard)
        if absent := [name for name in names if name not in header]:
            raise CheckpointProblem(
                f"{folder / shard} lacks {first_names(absent)}, which {file.name} names; download both again"
            )
        tensors |= header
        if len(tensors) > MAX_TENSORS:
            raise CheckpointProblem(f"{file} names files with more than {MAX_TENSORS:,} tensors; download them again")
    return tensors


def _header(folder: Path, file: Path) -> dict[str, TensorInfo]:
    check_link(folder, file)
    return read_header(file)


def _check_presence(folder: Path, index: Path, shards: list[str]) -> None:
    if absent := [name for name in shards if not is_file(folder / name)]:
        unfinished = [path.name for path in folder.iterdir() if path.name.endswith(UNFINISHED)]
        hint = f" ({first_names(sorted(unfinished))} is an unfinished download)" if unfinished else ""
        raise CheckpointProblem(
            f"{folder} lacks {len(absent)} of the {len(shards)} files that {index.name} names: "
            f"{first_names(absent)}{hint}; download them again"
        )


def _check_precision(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype.startswith(("F8", "F4", "F6")) or name.endswith(QUANTIZED_NAMES):
            raise CheckpointProblem(
                f"{folder}: the weights are quantized (tensor {name!r}, {tensor.dtype}), which the engine does not "
                f"compute; {FULL_PRECISION}"
            )


def _absence(folder: Path) -> str:
    """The sentence about a folder without weights that can be loaded, with those that it has."""
    names = sorted(path.name for path in folder.iterdir())
    if shards := [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]:
        return f"{folder} has {first_names(shards)}, but {INDEX}, which names the shards, is missing; download it"
    unfinished = [name for name in names if name.endswith(UNFINISHED)]
    if unfinished:
        return f"{folder} has no weights: {first_names(unfinished)} is an unfinished download; finish it"
    if others := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{folder} has {first_names(others)}, but neither {SINGLE} nor {INDEX}, which Transformers loads; "
            "take the model's Transformers files"
        )
    found = first_names([name for name in names if name.endswith(OTHER_WEIGHTS)]) or "no weights"
    return (
        f"the model folder {folder} has no safetensors (found: {found}); "
        "convert it with save_pretrained, other formats are not loaded"
    )


def _check_inside(source: Path, name: str, suffixes: tuple[str, ...]) -> None:
    """Raises `CheckpointProblem` for a name outside of the folder, and for files that may hold code (pickles)."""
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or str(Path(name)) != name:
        raise CheckpointProblem(f"{source} names the file {name!r} outside of its folder, which is not read")
    if not name.endswith(suffixes):
        raise CheckpointProblem(
            f"{source} names the file {name!r}, which is not safetensors; convert it with save_pretrained, other "
            "formats are not loaded"
        )
