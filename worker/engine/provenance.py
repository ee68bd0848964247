"""The origin of results: which model files, which device and kernels, which versions."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from models.checkpoint.adapter import adapter_hash
from models.checkpoint.deciding_files import combined_hash, small_file_hashes, weights_hash
from worker.engine.model_loader import LoadedModel


def describe_environment(loaded: LoadedModel) -> dict[str, Any]:
    """The columns of the `environments` table, except its id. Raises `CheckpointProblem`."""
    small_files = {} if loaded.folder is None else small_file_hashes(loaded.folder)
    return {
        "model": loaded.limits.name,
        "weights_hash": _weights_hash(loaded),
        "tokenizer_hash": combined_hash(small_files) if small_files else "unknown",
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": _device_name(loaded.model.device),
        "attention": loaded.model.description,
        "versions": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "tokenizer": type(loaded.tokenizer).__name__,  # its class; TokenizersBackend is tokenizer.json as it stands
            **({} if loaded.adapter is None else {"adapter": adapter_hash(loaded.adapter)}),
            **({} if loaded.verdict is None else {"path": loaded.verdict.sentence}),
            **({"files": small_files} if small_files else {}),
        },
    }


def _weights_hash(loaded: LoadedModel) -> str:
    """The hash of the weights that were loaded; for a hub model its commit."""
    commit = getattr(loaded.config, "_commit_hash", None)
    if commit or loaded.folder is None:
        return str(commit or "unknown")
    return weights_hash(loaded.folder)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
