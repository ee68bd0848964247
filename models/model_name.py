"""One spelling for each model: a folder by its absolute path, a hub id as it is, `@` and a revision behind it."""

from __future__ import annotations

from os.path import isdir
from pathlib import Path


def split_revision(model: str) -> tuple[str, str | None]:
    """The hub id or folder, and the revision that a hub model names: a branch, a tag or a commit."""
    if "@" not in model or isdir(model) or model.startswith(("/", ".", "~")):
        return model, None
    repository, _, revision = model.rpartition("@")
    return repository, revision


def with_revision(model: str, revision: str) -> str:
    """The name of a hub model's revision. Raises `ValueError` for a folder, which has none."""
    if not revision or any(character.isspace() or character == "@" for character in revision):
        raise ValueError(f"--revision must be a branch, a tag or a commit, got {revision!r}")
    if isdir(model) or model.startswith(("/", ".", "~")):
        raise ValueError(f"--revision is for models of the hub, and {model} is a folder; leave it out")
    if (named := split_revision(model)[1]) is not None:
        raise ValueError(f"--revision {revision} and the model's own {named} are two; leave one out")
    return f"{model}@{revision}"


def canonical_model(model: str) -> str:
    """The name under which producer and worker know the same model."""
    return str(Path(model).resolve()) if isdir(model) else model
