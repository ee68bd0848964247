"""Folders in which the engine and its libraries keep what they compile, wherever a worker runs.

In a container whose user has no name, no home and nothing to write to, torch would end at its import.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from models.checkpoint.paths.cache_folder import users_cache_folder

#: Variable of a library -> its folder below ours.
LIBRARIES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}

logger = logging.getLogger(__name__)


def name_cache_folders() -> None:
    """Puts folders that can be written to into the environment. To be called before torch is imported."""
    base = _base_folder()
    os.environ["XDG_CACHE_HOME"] = str(base)
    for variable, name in LIBRARIES.items():
        given = os.environ.get(variable)
        if not given or not _is_writable(Path(given)):
            os.environ[variable] = str(base / "nocturne" / name)


def _base_folder() -> Path:
    try:
        folder = users_cache_folder()
        if _is_writable(folder):
            return folder
        reason = f"the cache folder {folder} cannot be written"
    except FileNotFoundError as error:
        reason = str(error)
    temporary = _temporary_folder()
    logger.warning("%s: what is compiled is kept in %s; let XDG_CACHE_HOME name a folder", reason, temporary)
    return temporary


def _is_writable(folder: Path) -> bool:
    """Whether files can be made there; makes the folder."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return folder.is_absolute() and os.access(folder, os.W_OK | os.X_OK)


def _temporary_folder() -> Path:
    """A folder for this user's later starts too, unless another user has put something in its place."""
    folder = Path(tempfile.gettempdir(), f"nocturne-cache-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if is_own else Path(tempfile.mkdtemp(prefix="nocturne-cache-"))
