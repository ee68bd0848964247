"""The start of child processes: nothing of the working directory on their import path, and none that outlives us.

The folder of a user's project may hold a `worker.py` or a `queue.py`. Python puts the working directory first for
`-m` and `-c`, and wherever PYTHONPATH has an empty entry; multiprocessing hands a parent's import path on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

CODE_FOLDER = Path(__file__).resolve().parents[1]

PR_SET_PDEATHSIG = 1


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


def end_with_parent(number: signal.Signals = signal.SIGTERM, parent: int | None = None) -> Callable[[], None] | None:
    """A function for a child to call: it gets the signal when the parent, by default this process, is gone.

    None where the system cannot tell it.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    expected = os.getpid() if parent is None else parent

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != expected:  # it died in between
            os.kill(os.getpid(), number)

    return ask


def _is_working_directory(entry: str) -> bool:
    return os.path.realpath(entry) == os.path.realpath("")
