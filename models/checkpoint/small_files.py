"""A model's small files as bytes and JSON, and the damage that any file of a model may have.

Downloads leave more than broken JSON behind: Git LFS pointers, web pages in place of files, links to absent files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LFS_POINTER = b"version https://git-lfs.github.com/"
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")
MAX_JSON_BYTES = 256 * 2**20
HEAD_BYTES = 128


class CheckpointProblem(Exception):
    """The files of a model that no engine could load; the message is one line with the cause and the remedy."""


def check_content(path: Path) -> bytes:
    """The first bytes of a file. Raises `CheckpointProblem` for a file that is not what its name says."""
    try:
        with path.open("rb") as file:
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


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises `CheckpointProblem`."""
    check_content(path)
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise CheckpointProblem(f"{path} has {size:,} bytes, too many for such a file; download it again")
        content = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointProblem(f"{path} is not JSON: {one_line(error)}; download it again") from error
    if not isinstance(content, dict):
        raise CheckpointProblem(f"{path} must hold a JSON object, not {type(content).__name__}; download it again")
    return content


def is_file(path: Path) -> bool:
    """Whether the folder has an entry of this name that is no folder: a link to an absent file too."""
    return os.path.lexists(path) and not os.path.isdir(path)


def check_text(path: Path) -> None:
    """Raises `CheckpointProblem` for a file that is not UTF-8 text."""
    check_content(path)
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise CheckpointProblem(f"{path} is not UTF-8 text: {one_line(error)}; download it again") from error


def one_line(error: BaseException) -> str:
    """An error's text without its line ends; its type's name where it has none."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def _unreadable(path: Path, error: OSError) -> CheckpointProblem:
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return CheckpointProblem(f"{path} is a link to a file that is absent; download it again")
    return CheckpointProblem(f"{path} cannot be read: {error.strerror}; check the file and its permissions")
