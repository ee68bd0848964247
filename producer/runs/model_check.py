"""Checking that a model exists: by a folder's files, or by asking the hub. Loads no weights."""

from __future__ import annotations

import os
import re
from pathlib import Path

from models.checkpoint.folder import check_folder
from models.checkpoint.small_files import CheckpointProblem
from models.model_name import canonical_model
from producer.errors import UsageError
from producer.model_files.folder import SMALL_FILES, ModelFiles, model_files

#: The form of a hub model's name.
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def check_model(model: str) -> str:
    """The model's canonical name. Raises `UsageError` for a model that no worker could load."""
    path = Path(model)
    if os.path.lexists(path):
        _check_folder(path)
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UsageError(f"unknown model {model!r}: there is no such folder; give a model folder or a hub id")
    else:
        _check_hub(model)
    return canonical_model(model)


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


def small_files(model: str) -> ModelFiles:
    """The small files of a model that `check_model` has taken. Raises `UsageError` where they are not at hand."""
    files = model_files(model)
    if files is None:
        raise UsageError(
            f"the small files of {model!r} are not here, and its generation config and tokenizer decide how jobs are "
            f"decoded; give the model's folder, download it with `hf download {model}`, or give --ignore-model-defaults"
        )
    return files


def _check_folder(path: Path) -> None:
    try:
        check_folder(path)
    except CheckpointProblem as problem:
        raise UsageError(str(problem)) from problem
    files = model_files(str(path))
    assert files is not None
    _ = files.tokenizer  # raises for a damaged one


def _check_hub(model: str) -> None:
    import logging

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        snapshot_download(model, allow_patterns=list(SMALL_FILES))
    except HFValidationError as error:
        raise UsageError(f"unknown model {model!r}: neither a folder nor a hub id such as Qwen/Qwen2-0.5B") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"unknown model {model!r}: it is no folder here, and the model hub did not give it "
            f"({type(error).__name__}); check the name, the network or your access, or give a model folder"
        ) from error
