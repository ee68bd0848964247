"""A command in a process of its own that is ended, with all its children, when it is late."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """The end of a command."""

    status: int | None  # None: it was late
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return (self.stderr.strip() or self.stdout.strip() or "no output").splitlines()[-1]


def run_limited(command: Sequence[str | Path], seconds: float, cwd: Path | None = None) -> Ended:
    """Runs a command. It writes to files, for a pipe stays open as long as a grandchild lives."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for file in (stdout, stderr):
            file.seek(0)
        return Ended(status, stdout.read(), stderr.read())
