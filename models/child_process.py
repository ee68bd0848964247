"""The start of child processes, with nothing of the working directory on their import path.

The folder of a user's project may hold a `worker.py` or a `queue.py`. Python puts the working directory first for
`-m` and `-c`, and wherever PYTHONPATH has an empty entry; multiprocessing hands a parent's import path on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

CODE_FOLDER = Path(__file__).resolve().parents[1]


def worker_command(*arguments: str) -> list[str]:
    """The `worker` command as a child runs it; needs `child_environment` too."""
    return [sys.executable, "-P", "-m", "worker", *arguments]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, changed so that Python and its own children import nothing of the working directory."""
    entries = environment.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if not _is_working_directory(entry)]
    if Path.cwd() == CODE_FOLDER:  # in a checkout the working directory is the code itself
        kept.append(str(CODE_FOLDER))
    return {**environment, "PYTHONPATH": os.pathsep.join(kept), "PYTHONSAFEPATH": "1"}


def isolate_children() -> None:
    """Takes the working directory out of this process's import path and environment, which children inherit."""
    os.environ.update(child_environment(os.environ))
    if Path.cwd() != CODE_FOLDER:
        sys.path[:] = [entry for entry in sys.path if not _is_working_directory(entry)]


def _is_working_directory(entry: str) -> bool:
    return os.path.realpath(entry) == os.path.realpath("")
