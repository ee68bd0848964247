"""Reads a model's safetensors into Transformers' class of it; quantized ones are multiplied out before."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from models.checkpoint.quantization import quantization_method
from models.checkpoint.small_files import is_file, read_json_object
from worker.engine.backend import LoadOptions
from worker.engine.loading.auto_class import auto_class, concrete_class
from worker.engine.loading.dequantize import dequantized_weights
from worker.engine.model.attention import ATTENTION_NAME
from worker.engine.request import ModelUnavailable


def read_model(name: str, folder: Path, config: Any, dtype: torch.dtype, options: LoadOptions) -> Any:
    """The model on the CPU, or spread over several devices. Raises `ModelUnavailable` where weights are absent."""
    given = read_json_object(folder / "config.json")
    read = _read_quantized if quantization_method(given)[0] else _read_plain
    loaded: Any = read(
        folder,
        config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **({"attn_implementation": ATTENTION_NAME} if options.is_packed else {}),
        **({"device_map": "balanced"} if options.is_spread else {}),
    )
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]):  # Transformers would go on with random ones
        raise ModelUnavailable(
            f"the weights of {name!r} lack {len(absent):,} tensors of its configuration, such as {absent[0]}; "
            "config and weights are of different models, download both again"
        )
    if unplaced := _unplaced(model, loading["unexpected_keys"]):  # Transformers would go on without them
        raise ModelUnavailable(
            f"the weights of {name!r} hold {len(unplaced):,} tensors that layers of its configuration do not have, "
            f"such as {unplaced[0]}; config and weights are of different models, download both again"
        )
    if folder.parent.name == "snapshots":  # of the hub's cache, where a folder has the name of its commit
        model.config._commit_hash = folder.name
    return model


def _unplaced(model: Any, names: Iterable[str]) -> list[str]:
    """The unused weights and biases whose layer the model has; other parts, such as an image encoder, are left out."""
    modules = dict(model.named_modules())
    return sorted(name for name in names if _lacks(modules.get(name.rpartition(".")[0]), name.rpartition(".")[2]))


def _lacks(layer: Any, tensor: str) -> bool:
    """Whether a layer with parameters of its own has none of this name."""
    if tensor not in ("weight", "bias") or layer is None:
        return False
    return any(True for _ in layer.parameters(recurse=False)) and getattr(layer, tensor, None) is None


def _read_plain(folder: Path, config: Any, **options: Any) -> Any:
    return auto_class(config).from_pretrained(folder, config=config, **options)


def _read_quantized(folder: Path, config: Any, **options: Any) -> Any:
    """The model of a configuration that knows nothing of the quantization, with weights that are multiplied out."""
    weights = dequantized_weights(folder, read_json_object(folder / "config.json"), options["dtype"])
    for part in (config, config.get_text_config()):
        part.__dict__.pop("quantization_config", None)
    made = concrete_class(config)
    # As Transformers' loaders do: the class of a model that also sees may be that of its text part.
    own = config if isinstance(config, made.config_class) else config.get_text_config()
    model, loading = made.from_pretrained(None, config=own, state_dict=weights, **options)
    # AutoGPTQ gives layers without a bias one of zeros.
    biases = {name for name, weight in weights.items() if name.endswith(".bias") and not weight.any()}
    loading["unexpected_keys"] = [name for name in loading["unexpected_keys"] if name not in biases]
    if is_file(folder / "generation_config.json"):
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, loading
