"""`nocturne.toml` of the working directory, and files that hold one value each.

`nocturne.toml` names broker and database, so a file of somebody else's would send a user's prompts to their servers:
it is read only where nobody but this user or root can have written it. The other files hold secrets; environment
variables name them.
"""

from __future__ import annotations

import os
import pwd
import stat
import tomllib
from pathlib import Path
from typing import Any

CONFIG_FILE = "nocturne.toml"
MAX_BYTES = 1 << 20
ROOT_USER = 0


class ConfigFileProblem(Exception):
    """The file cannot be used; the text names it, the reason and the remedy."""


def read_config_file() -> dict[str, Any]:
    """The values of the file; empty without one. Raises `ConfigFileProblem`."""
    path = config_path()
    if not os.path.lexists(path):
        return {}
    try:
        _check_owner(path, path.lstat())  # of the link, where it is one
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_file(path, os.fstat(descriptor))
            content = os.read(descriptor, MAX_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigFileProblem(f"{path} cannot be read: {error.strerror}; correct or remove it") from error
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # editors of Windows write a byte order mark first
    except (ValueError, RecursionError) as error:
        raise ConfigFileProblem(f"{path} is not TOML: {error}") from error


def read_value(variable: str, path: str) -> str:
    """The value in the file that an environment variable names, without its line end. Raises `ConfigFileProblem`."""
    try:
        with open(path, encoding="utf-8") as file:
            value = file.read(MAX_BYTES).rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigFileProblem(f"{variable} names {path}, which cannot be read: {reason}") from error
    if not value or "\n" in value:
        raise ConfigFileProblem(f"{variable} names {path}, which must hold a value in one line")
    return value


def config_path() -> Path:
    """The file's place; it need not exist."""
    return Path.cwd() / CONFIG_FILE


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigFileProblem(f"{path} is not a file, so it is not read; remove it")
    _check_owner(path, status)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigFileProblem(f"{path} can be written by other users, so it is not read; chmod go-w {path}")
    if status.st_size > MAX_BYTES:
        raise ConfigFileProblem(f"{path} has {status.st_size:,} bytes, more than {MAX_BYTES:,}; shorten it")


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), ROOT_USER):
        raise ConfigFileProblem(
            f"{path} belongs to {user_name(status.st_uid)}, so its settings are not taken; work in a folder of your "
            "own, or remove it"
        )


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without a name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
