"""The file that a command names, which is read twice: a regular one that must not change, or a copy of a pipe."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from producer.errors import UsageError


@dataclass(frozen=True)
class FileState:
    """All that changes with a file's content, as far as its folder tells."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """The state of the file now. Raises `OSError`."""
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextmanager
def readable_twice(path: Path) -> Iterator[Path]:
    """The file itself, or a private copy of what comes out of a pipe. Raises `UsageError`."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a directory; give a file of prompts{_such(path)}")
    if stat.S_ISREG(mode):
        yield path
        return
    if not (stat.S_ISFIFO(mode) or _is_terminal(path, mode)):
        raise UsageError(f"{path} is neither a file nor a pipe; give a file of prompts")
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    with file, private_copy(file, "".join(path.suffixes) or ".jsonl") as copy:
        yield copy


@contextmanager
def private_copy(file: IO[bytes], suffix: str) -> Iterator[Path]:
    """A file that only its user can read, with what is left in another one. Raises `UsageError`."""
    with tempfile.NamedTemporaryFile(prefix="prompts-", suffix=suffix) as copy:
        try:
            copyfileobj(file, copy)
            copy.flush()
        except OSError as error:
            raise UsageError(f"cannot copy the prompts to {copy.name}: {error.strerror}") from error
        yield Path(copy.name)


def check_unchanged(path: Path, before: FileState, shown: str) -> None:
    """Raises `UsageError` for a file that is not as it was."""
    try:
        is_same = FileState.of(path) == before
    except OSError:
        is_same = False
    if not is_same:
        raise UsageError(changed(shown))


def changed(shown: str, counts: str = "") -> str:
    """The sentence about a file that changed between its two passes."""
    return f"{shown} changed while it was read{counts}; nothing was submitted; submit it when it is whole, or a copy"


def _such(folder: Path) -> str:
    """The end of a sentence about a folder: one of the files in it, which may be the parts of a data set."""
    try:
        parts = sorted(part for part in folder.iterdir() if part.is_file() and part.name[:1] not in "._")
    except OSError:
        return ""
    return f", such as {parts[0]}; parts of a data set are put together first" if parts else ""


def _is_terminal(path: Path, mode: int) -> bool:
    if not stat.S_ISCHR(mode):
        return False
    with path.open("rb", buffering=0) as file:
        return os.isatty(file.fileno())
