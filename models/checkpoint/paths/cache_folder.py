"""The folder in which a user's programs keep what they can make again."""

from __future__ import annotations

import os
from pathlib import Path


def users_cache_folder() -> Path:
    """`XDG_CACHE_HOME`, or `.cache` in the home. Raises `FileNotFoundError` for a user who has neither.

    A relative one would be in the working directory, whose files are neither run nor believed.
    """
    for folder in (Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.path.expanduser("~"), ".cache")):
        if folder.is_absolute():
            return folder
    raise FileNotFoundError("this user has no home, and XDG_CACHE_HOME names no folder")
