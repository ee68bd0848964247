"""Checking a model before anything is written: its folder, or the small files that the hub has of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from models.checkpoint.adapter import check_adapter
from models.checkpoint.folder import check_folder, check_small_files
from models.checkpoint.hub import model_folder
from models.checkpoint.small_files import CheckpointProblem
from models.model_name import canonical_model
from producer.errors import UsageError
from producer.model_files.folder import ModelFiles, model_files
from producer.terminal_text import is_storable

#: The form of a hub model's name, and of its revision.
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")


def check_model(model: str, *, revision: str | None = None) -> str:
    """The model's canonical name; a hub model's small files are in the cache then.

    Raises `UsageError` for a model that no worker could load.
    """
    is_here = os.path.lexists(model)
    if not is_storable(canonical_model(model)):
        raise UsageError(f"the path of the model {model} is not UTF-8; rename the folder")
    try:
        folder = model_folder(model, revision)
        if is_here:
            check_folder(folder)
        else:
            check_small_files(folder)
    except CheckpointProblem as problem:
        raise UsageError(str(problem)) from problem
    _ = ModelFiles(model, folder).tokenizer  # raises for a damaged one
    return canonical_model(model)


def check_worker_adapter(adapter: str | None) -> None:
    """Raises `UsageError` for the adapter of a worker that is to start here, if it could not be merged."""
    try:
        _ = adapter is None or check_adapter(Path(adapter))
    except CheckpointProblem as problem:
        raise UsageError(str(problem)) from problem


def check_submitted_model(model: str, *, needs_files: bool) -> str:
    """`check_model` for workers elsewhere: without need of its files a hub model is taken by its name alone."""
    is_hub_id = not os.path.lexists(model) and HUB_ID.fullmatch(model) is not None
    if is_hub_id and not needs_files:
        return model
    try:
        return check_model(model)
    except UsageError as error:
        if not is_hub_id:
            raise
        raise UsageError(f"{error}; --ignore-model-defaults submits without the model's files") from error


def fetch_weights(model: str, *, revision: str | None = None) -> None:
    """Downloads what the hub's cache lacks of a model, and checks it. Raises `UsageError`."""
    if Path(model).is_dir():
        return
    try:
        check_folder(model_folder(model, revision, with_weights=True))
    except CheckpointProblem as problem:
        raise UsageError(str(problem)) from problem


def small_files(model: str) -> ModelFiles:
    """The small files of a model that `check_model` has taken. Raises `UsageError` where they are not at hand."""
    files = model_files(model)
    if files is None:
        raise UsageError(
            f"the small files of {model!r} are not here, and its generation config and tokenizer decide how jobs are "
            f"decoded; give the model's folder, download it with `hf download {model}`, or give --ignore-model-defaults"
        )
    return files
