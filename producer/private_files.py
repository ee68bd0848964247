"""The files of a home: for their owner alone, and nothing that another user could have put there.

Prompts and answers are in them. A link is not followed, a file of somebody else is not read; a torn one is as good as
absent.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from pathlib import Path
from typing import IO, Any

from models.config_file import user_name
from producer.errors import UsageError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OTHERS = 0o077
MAX_BYTES = 1 << 20  # of a file that is read whole
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in a file's place must not be waited for


def make_home(home: Path) -> None:
    """Makes a home that its owner alone may enter; one that exists keeps its rights. Raises `UsageError`."""
    try:
        home.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        owner = home.stat().st_uid
    except OSError as error:
        raise UsageError(f"cannot make the home {home}: {error.strerror}; give another --home") from error
    if owner != os.geteuid():
        raise UsageError(f"the home {home} belongs to {user_name(owner)}; give a --home of your own")


def keep_folder_private(folder: Path) -> None:
    """Takes the rights of others from a folder, if it is there. Raises `UsageError` for somebody else's."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"cannot use {folder}: {error.strerror}; remove it") from error
    try:
        _take_rights(folder, descriptor)
    finally:
        os.close(descriptor)


def open_private(path: Path, mode: str) -> IO[Any]:
    """A file of a home to append to, made where it is not there ("a+" or "ab"). Raises `UsageError`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _SAFE, FILE_MODE)
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        raise UsageError(f"cannot write {path}: {reason}; remove it, or give another --home") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise UsageError(f"cannot write {path}: it is not a file of its own; remove it, or give another --home")
        _take_rights(path, descriptor)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8")


def lines_from(path: Path, begin: int) -> list[str]:
    """The lines of a log from a byte on, behind those of earlier processes; none where it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(begin)
            return log.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return []


def read_private_json(path: Path) -> Any:
    """The content of a small file of a home; None where it is absent, torn, or somebody else's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFE)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > MAX_BYTES:
            return None
        return json.loads(os.read(descriptor, MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(descriptor)


def write_private_json(path: Path, content: Any) -> None:
    """Replaces a file of a home, so that it is never torn. Raises `UsageError`."""
    temporary = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; remove it, or give another --home") from error


def make_private_database(path: Path) -> None:
    """Makes the home's database file, empty, where it is not there; SQLite gives its journals the same rights."""
    make_home(path.parent)
    if not os.path.lexists(path):
        open_private(path, "ab").close()


def _take_rights(path: Path, descriptor: int) -> None:
    """Leaves an open file to its owner alone. Raises `UsageError` where that is another user."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise UsageError(f"{path} belongs to {user_name(status.st_uid)}; remove it, or give another --home")
    if status.st_mode & OTHERS:
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~OTHERS)
