"""The origin of results: which model files, which device and kernels, which versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from models.checkpoint.adapter import adapter_hash
from models.checkpoint.deciding_files import combined_hash, small_file_hashes, weights_hash
from models.checkpoint.paths.verdict import Verdict
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
            **_adapter(loaded.adapter),
            **_path(loaded.verdict),
            **({"files": small_files} if small_files else {}),
        },
    }


def _adapter(folder: Path | None) -> dict[str, str]:
    return {} if folder is None else {"adapter": adapter_hash(folder), "adapter_name": folder.name}


def _path(verdict: Verdict | None) -> dict[str, Any]:
    """The path on which the model is decoded; whether answers are batch-invariant where that was tried."""
    if verdict is None:
        return {}
    invariance = verdict.is_batch_invariant
    return {"path": verdict.sentence, **({} if invariance is None else {"is_batch_invariant": invariance})}


def _weights_hash(loaded: LoadedModel) -> str:
    """The hash of the weights that were loaded; for a hub model its commit."""
    commit = getattr(loaded.config, "_commit_hash", None)
    if commit or loaded.folder is None:
        return str(commit or "unknown")
    return weights_hash(loaded.folder)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
