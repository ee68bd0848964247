"""The entries of a model's folder: files of reasonable sizes inside it, since whoever wrote it may be a stranger.

A link may lead to another file of the folder or into the hub's cache, whose folders consist of links. Anywhere else it
would let a model show a file of this machine to whoever reads the answers.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from models.checkpoint.small_files import MAX_SMALL_BYTES, CheckpointProblem

#: Ends of the names of files that are read whole.
SMALL_SUFFIXES = (".json", ".txt", ".jinja", ".model", ".tiktoken")
BLOB = re.compile(r"models--[^/]+/blobs/[0-9a-f]{40,64}")


def names_in(folder: Path) -> set[str]:
    """The names in a folder. Raises `CheckpointProblem` for entries that no model has."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise CheckpointProblem(
            f"the model folder {folder} cannot be read: {error.strerror}; check the folder and its permissions"
        ) from error
    for entry in found:
        _check_entry(folder, Path(entry.path))
    return {entry.name for entry in found}


def check_link(folder: Path, path: Path) -> None:
    """Raises `CheckpointProblem` for a file that is, by links, outside of its model's folder.

    A link that leads nowhere is reported by its reader.
    """
    if not os.path.exists(path):
        return
    place = os.path.realpath(path)
    roots = [os.path.realpath(folder)]
    if Path(roots[0]).parent.name == "snapshots":
        roots.append(str(Path(roots[0]).parent.parent / "blobs"))
    if any(place.startswith(f"{root}{os.sep}") for root in roots) or _is_blob(place):
        return
    raise CheckpointProblem(
        f"{path} is a link out of the model's folder, to {place}, which is not read; copy the file into the folder"
    )


def _is_blob(place: str) -> bool:
    """Whether a file is of the hub's cache, to which folders of older downloads link."""
    from huggingface_hub import constants

    cache = os.path.realpath(constants.HF_HUB_CACHE)
    return place.startswith(f"{cache}{os.sep}") and BLOB.fullmatch(place[len(cache) + 1 :]) is not None


def _check_entry(folder: Path, path: Path) -> None:
    try:
        status = path.stat()
    except OSError:
        return
    if path.is_symlink():
        check_link(folder, path)
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointProblem(f"{path} is not a file but a pipe, a socket or a device; remove it")
    if path.name.endswith(SMALL_SUFFIXES) and status.st_size > MAX_SMALL_BYTES:
        raise CheckpointProblem(
            f"{path} has {status.st_size:,} bytes, and a file of its kind at most {MAX_SMALL_BYTES:,}; "
            "download it again"
        )
