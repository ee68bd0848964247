"""The home folder: a lock lets one process at a time decode in it, and a file names that process.

A command that only looks reads the file; it never takes the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import IO

import psutil

from models.redacted import redacted
from models.settings import Settings
from producer.console import say
from producer.errors import UsageError
from producer.private_files import open_private, read_private_json, write_private_json

WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class Holder:
    """The process that decodes in a home: its run, once it has one, and its log, where it is detached."""

    pid: int
    created: float  # tells it from a later process of the same number
    run: str | None = None
    log: str | None = None

    def __str__(self) -> str:
        return f"process {self.pid}" + (f", run {self.run}" if self.run is not None else "")


def holder_of(home: Path) -> Holder | None:
    """The process that decodes in the home now, if any."""
    try:
        holder = Holder(**read_private_json(home / "lock"))
        is_alive = _is_of_time(psutil.Process(holder.pid), holder.created)
    except (ValueError, TypeError, OverflowError, psutil.Error):
        return None  # a file of 0.1 is empty
    return holder if is_alive else None


def home_options(settings: Settings) -> str:
    """The options that another command needs to find the same home and database, as a shell reads them."""
    home = f" --home {quote(str(settings.home))}" if str(settings.home) != ".nocturne" else ""
    if settings.database is None or settings.origins.get("database") != "--database":
        return home  # the next command finds the database where this one has found it
    return f"{home} --database {quote(redacted(settings.database))}"


def noted_processes(path: Path) -> list[psutil.Process]:
    """The processes that a file notes and that still run; none where the file is torn."""
    noted = read_private_json(path)
    found = []
    for entry in noted if isinstance(noted, list) else []:
        with suppress(ValueError, TypeError, OverflowError, psutil.Error):
            pid, created = entry
            process = psutil.Process(pid)
            if _is_of_time(process, created):
                found.append(process)
    return found


def _is_of_time(process: psutil.Process, created: float) -> bool:
    """Whether the process began then; else another one has the number now."""
    return bool(abs(process.create_time() - created) < 1)


def note_processes(path: Path, pids: list[int]) -> None:
    """Writes down the processes of a producer, for the next one in its home to end if it is killed."""
    write_private_json(path, [(pid, psutil.Process(pid).create_time()) for pid in pids])


def remove_noted(path: Path) -> None:
    """Removes the file, whatever is in its place."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


class HomeLock:
    """The right to decode in a home; the end of the process returns it, however it ends."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file: IO[str] | None = None
        self._holder = Holder(os.getpid(), psutil.Process().create_time(), log=os.environ.get("NOCTURNE_RUN_LOG"))

    def acquire(self, sleep: Callable[[float], None]) -> None:
        """Waits for the lock, and says for whom; `sleep` may raise to end the waiting. Raises `UsageError`."""
        self._file = open_private(self._home / "lock", "a+")
        try:
            self._await(self._file, sleep)
            self._write(self._holder)
        except BaseException:
            self._file.close()
            self._file = None
            raise

    def _await(self, file: IO[str], sleep: Callable[[float], None]) -> None:
        told = ""
        while not _try_lock(file):
            other = holder_of(self._home)
            waiting_for = str(other) if other is not None else "another producer"
            if waiting_for != told:
                say(f"waiting for {waiting_for}, which decodes in {self._home}; Ctrl-C ends the waiting")
                told = waiting_for
            sleep(WAIT_SECONDS)

    def note_run(self, run_id: str) -> None:
        """Says which run is decoded, for those who wait and for `producer status`."""
        self._write(Holder(self._holder.pid, self._holder.created, run_id, self._holder.log))

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def _write(self, holder: Holder) -> None:
        assert self._file is not None
        try:
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), json.dumps(asdict(holder)).encode())
        except OSError as error:
            reason = f"{error.strerror}; free some space, or give another --home"
            raise UsageError(f"cannot write {self._home / 'lock'}: {reason}") from error


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
