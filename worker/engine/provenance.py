"""The origin of results: which model files, which device and kernels, which versions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers

from worker.engine.model_loader import LoadedModel


def describe_environment(loaded: LoadedModel) -> dict[str, Any]:
    """The columns of the `environments` table, except its id."""
    return {
        "model": loaded.limits.name,
        "weights_hash": _hash_files(loaded, "*.safetensors"),
        "tokenizer_hash": _hash_files(loaded, "tokenizer*"),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": _device_name(loaded.model.device),
        "attention": loaded.model.description,
        "versions": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "tokenizer": type(loaded.tokenizer).__name__,  # its class; TokenizersBackend is tokenizer.json as it stands
        },
    }


def _hash_files(loaded: LoadedModel, pattern: str) -> str:
    """The hash of the files of a model folder; for a hub model its commit."""
    folder = Path(loaded.limits.name)
    if not folder.is_dir():
        return str(getattr(loaded.config, "_commit_hash", None) or "unknown")
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
