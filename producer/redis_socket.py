"""The place of the embedded Redis's socket: in the home, or in a private folder that a file in the home names.

The path of a Unix socket is short, and in a folder where others may write they could put their own in its place. The
folder's name cannot be guessed, so nobody can have made it first.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from producer.errors import UsageError
from producer.private_files import FOLDER_MODE, OTHERS, read_private_json, write_private_json

SOCKET = "redis.sock"
PLACE_FILE = "redis.place.json"
MAX_SOCKET_PATH = 90  # bytes; Unix socket paths end at about 107
OTHERS_WRITE = 0o022


class RedisSocket:
    """The socket of one producer's Redis, between `make` and `remove`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = None if _is_fit(home) else Path(tempfile.gettempdir()) / f"nocturne-{secrets.token_hex(12)}"
        self.path = (self._folder or home) / SOCKET

    def make(self) -> None:
        """Removes what a killed producer left, and makes the folder where one is needed. Raises `UsageError`."""
        _remove_left(self._home)
        if self._folder is None:
            return
        if len(os.fsencode(self.path)) > MAX_SOCKET_PATH:
            raise UsageError(f"the paths of {self._home} and of {self._folder.parent} are too long for Redis's socket; "
                             "give a shorter --home, or set TMPDIR to a shorter folder")  # fmt: skip
        try:
            self._folder.mkdir(mode=FOLDER_MODE)
        except OSError as error:
            raise UsageError(
                f"cannot make the folder {self._folder}: {error.strerror}; set TMPDIR to another"
            ) from error
        write_private_json(self._home / PLACE_FILE, str(self._folder))

    def remove(self) -> None:
        """Removes the socket, and its folder."""
        self.path.unlink(missing_ok=True)
        _remove_left(self._home)


def running_socket(home: Path) -> Path | None:
    """The socket of the Redis that runs for a home, if this user has made one."""
    path = (_noted_folder(home) or home) / SOCKET
    try:
        status = path.lstat()
    except OSError:
        return None
    return path if stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid() else None


def _is_fit(home: Path) -> bool:
    """Whether a socket may be in the home itself; one that is not there yet is made private."""
    try:
        is_private = not home.stat().st_mode & OTHERS_WRITE
    except OSError:
        is_private = True
    return is_private and len(os.fsencode(home / SOCKET)) <= MAX_SOCKET_PATH


def _noted_folder(home: Path) -> Path | None:
    """The folder that the home's file names, if this user alone may enter it."""
    noted = read_private_json(home / PLACE_FILE)
    if not isinstance(noted, str) or "\0" in noted:
        return None
    try:
        status = os.lstat(noted)
    except OSError:
        return None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & OTHERS
    return Path(noted) if is_own else None


def _remove_left(home: Path) -> None:
    if (folder := _noted_folder(home)) is not None:
        with suppress(OSError):  # not empty: then it is not ours
            (folder / SOCKET).unlink(missing_ok=True)
            folder.rmdir()
    with suppress(OSError):
        (home / PLACE_FILE).unlink(missing_ok=True)
