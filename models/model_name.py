"""One spelling for each model: a folder by its absolute path, a hub id as it is."""

from __future__ import annotations

from pathlib import Path


def canonical_model(model: str) -> str:
    """The name under which producer and worker know the same model."""
    path = Path(model)
    return str(path.resolve()) if path.is_dir() else model
