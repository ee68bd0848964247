"""A model's small files as bytes and JSON, and the damage that any file of a model may have.

Downloads leave more than broken JSON behind: Git LFS pointers, web pages in place of files, links to absent files.
Strangers add pipes, devices, terabytes of nothing and JSON that unfolds in memory, so each file is bounded.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

LFS_POINTER = b"version https://git-lfs.github.com/"
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
MAX_SMALL_BYTES = 128 * 2**20  # four times the largest vocabulary of 2026
MAX_VALUES = 8_000_000  # objects, lists and their elements in such a file; they need the memory
MAX_CONFIG_BYTES = 32 * 2**20
MAX_DEPTH = 100  # of a configuration
HEAD_BYTES = 128
MAX_MESSAGE = 1_500


class CheckpointProblem(Exception):
    """The files of a model that no engine could load; the message is one line with the cause and the remedy.

    It may hold names from the files, so control characters are escaped and its length is bounded.
    """

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"
        super().__init__("".join(map(_printable, message)))


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def open_file(path: Path) -> BinaryIO:
    """A regular file to read. Raises `CheckpointProblem`; a pipe is not waited for, a device not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise CheckpointProblem(f"{path} cannot be read: it is {kind}, not a file; remove it, or download the file again")


def check_content(path: Path) -> bytes:
    """The first bytes of a file. Raises `CheckpointProblem` for a file that is not what its name says."""
    with open_file(path) as file:
        try:
            head = file.read(HEAD_BYTES)
        except OSError as error:
            raise _unreadable(path, error) from error
    if head.startswith(LFS_POINTER):
        raise CheckpointProblem(
            f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download it again"
        )
    if head.lstrip().lower().startswith(WEB_PAGES):
        raise CheckpointProblem(f"{path} is a web page, not the file itself; download it again")
    if not head:
        raise CheckpointProblem(f"{path} is empty; download it again")
    return head


def read_json_object(path: Path, *, is_large: bool = False) -> dict[str, Any]:
    """The JSON object that a file holds; a vocabulary or an index `is_large`. Raises `CheckpointProblem`."""
    text = read_bytes(path, MAX_SMALL_BYTES if is_large else MAX_CONFIG_BYTES)
    try:
        content = parse_json(text, is_unique=not is_large)
        if not is_large:
            _check_depth(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointProblem(f"{path} is not JSON: {one_line(error)}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} must hold a JSON object, not {type(content).__name__}; download it again")
    return content


def parse_json(text: bytes, *, is_unique: bool) -> Any:
    """The content of a JSON text; with `is_unique` a key with two values is a fault. Raises `ValueError`."""
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values")
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique if is_unique else None)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two values they take. Raises `ValueError` for a key that has two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"{key[:100]!r} stands twice, with different values")
    return found


def _check_depth(content: Any) -> None:
    """Raises `ValueError` for objects and lists that are nested deeper than Python and Rust both can follow."""
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        containers = [part for part in level if isinstance(part, dict | list)]
        level = [child for part in containers for child in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return
    raise ValueError(f"nested more than {MAX_DEPTH} deep")


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes. Raises `CheckpointProblem`."""
    check_content(path)
    with open_file(path) as file:
        try:
            content = file.read(most + 1) if (size := os.fstat(file.fileno()).st_size) <= most else b""
        except OSError as error:
            raise _unreadable(path, error) from error
    if not content or len(content) > most:
        raise CheckpointProblem(
            f"{path} has {max(size, len(content)):,} bytes, and a file of its kind at most {most:,}; download it again"
        )
    return content


def is_file(path: Path) -> bool:
    """Whether the folder has an entry of this name that is not a folder: a link to an absent file too."""
    return os.path.lexists(path) and not os.path.isdir(path)


def check_text(path: Path) -> None:
    """Raises `CheckpointProblem` for a file that is not UTF-8 text."""
    try:
        read_bytes(path, MAX_SMALL_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointProblem(f"{path} is not UTF-8 text: {one_line(error)}; download it again") from error


def is_library_error(error: BaseException) -> bool:
    """Whether a library failed; a panic in its Rust code arrives as a class that is not an Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def one_line(error: BaseException) -> str:
    """An error's text without its line ends, printable and short; its type's name where it has none."""
    text = " ".join(str(error)[: 4 * MAX_MESSAGE].split())[:500]
    return "".join(map(_printable, text)) or type(error).__name__


def wrong_value(path: Path, name: str, kind: str, value: Any) -> CheckpointProblem:
    """The problem of a field whose value is of another kind."""
    return CheckpointProblem(f"{path}: {name} must be {kind}, got {str(value)[:100]!r}; correct or download the file")


def first_names(names: list[str]) -> str:
    """The first three names, and the number of those beside them."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _unreadable(path: Path, error: OSError) -> CheckpointProblem:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return CheckpointProblem(f"{path} is a link to a file that is absent; download it again")
    return CheckpointProblem(f"{path} cannot be read: {error.strerror}; check the file and its permissions")
