"""One spelling for each model: a folder by its absolute path, a hub id as it is."""

from __future__ import annotations

from os.path import isdir
from pathlib import Path


def canonical_model(model: str) -> str:
    """The name under which producer and worker know the same model."""
    return str(Path(model).resolve()) if isdir(model) else model
