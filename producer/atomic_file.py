"""The one way in which a file that a person names is written: whole or not at all, with the rights it has to have.

A regular file is replaced at the end by a temporary one beside it; a new one has the rights of the umask, an old one
keeps its own. Pipes, terminals and the like are written to as they stand. Links are refused, block devices too.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from producer.errors import UsageError

#: The process's own descriptors by name; on Linux these are links.
DESCRIPTORS = re.compile(r"/dev/fd/(\d{1,9})|/proc/self/fd/(\d{1,9})|/dev/(stdin|stdout|stderr)")
STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}


@contextmanager
def atomic_file(target: Path) -> Iterator[Any]:
    """A text file that is at `target` when the block ends without an exception. Raises `UsageError`."""
    try:
        with _opened(target) as file:
            yield file
    except BrokenPipeError:
        raise  # the reader had enough; the command ends as it does for stdout
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error


def check_target(target: Path) -> None:
    """Raises `UsageError` for a file that `atomic_file` would refuse, before a night is spent on its content."""
    if _descriptor(target) is None:
        _status(target)


def is_stream(target: Path) -> bool:
    """Whether it is a pipe, a terminal or a descriptor by name: no file can lie beside it."""
    return _descriptor(target) is not None or (target.exists() and not target.is_file())


def _descriptor(target: Path) -> int | None:
    """The process's own descriptor that a path names; None for any other path."""
    match = DESCRIPTORS.fullmatch(os.path.abspath(target))
    if match is None:
        return None
    return STANDARD[match[3]] if match[3] else int(match[1] or match[2])


@contextmanager
def _opened(target: Path) -> Iterator[Any]:
    if (number := _descriptor(target)) is not None:
        with _as_text(os.dup(number)) as file:
            yield file
        return
    status = _status(target)
    if status is not None and not stat.S_ISREG(status.st_mode):
        with _as_text(os.open(target, os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)) as file:
            yield file
        return
    with _replacing(target, status) as file:
        yield file


def _status(target: Path) -> os.stat_result | None:
    """The status of what may be written to, or None where there is nothing yet. Raises `UsageError`."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if (kind := _unfit(target, status.st_mode)) is not None:
        raise UsageError(f"cannot write {target}: it is {kind}")
    if stat.S_ISREG(status.st_mode) and not _may_write(target):
        raise UsageError(f"cannot write {target}: its rights forbid it; chmod u+w {target}, or give another file")
    return status


def _may_write(target: Path) -> bool:
    return os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _unfit(target: Path, mode: int) -> str | None:
    """The kind of a thing that is not written to. Pipes and devices such as /dev/null and terminals are."""
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(target)}; give the file itself"
    if stat.S_ISDIR(mode):
        return "a folder; give a file in it"
    if stat.S_ISBLK(mode):
        return "a block device; give a file"
    return "a socket; give a file" if stat.S_ISSOCK(mode) else None


@contextmanager
def _replacing(target: Path, status: os.stat_result | None) -> Iterator[Any]:
    """A new file beside the target, which it replaces at the end."""
    temporary = target.with_name(f".nocturne-{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if status is None else 0o600)
    try:
        with _as_text(descriptor) as file:
            if status is not None:
                _copy_rights(descriptor, status)
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _copy_rights(descriptor: int, status: os.stat_result) -> None:
    """The owner only where this process may give files away: root does not take a user's file from them."""
    own = os.fstat(descriptor)
    if os.geteuid() == 0 and (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o777)


def _as_text(descriptor: int) -> Any:
    return os.fdopen(descriptor, "w", encoding="utf-8", newline="")
