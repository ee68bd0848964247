"""Text of strangers on a terminal: control characters are escaped, so that they neither move the cursor nor color,
turn or hide what stands around them.
"""

from __future__ import annotations

import json
import re
from typing import Any, TextIO

#: Characters of data that stay; Python calls all controls, formats such as those of direction, and separators
#: unprintable.
_KEPT = frozenset("\n\t ")


def visible(text: str) -> str:
    """The text with each unprintable character but the line end escaped as Python writes it."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def is_storable(text: str) -> bool:
    """Whether the text is UTF-8: names of files and words of the shell may be other bytes."""
    return visible_bytes(text) == text


def visible_bytes(text: str) -> str:
    """The text as a database stores it: bytes that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(text: str) -> str:
    """The text escaped as JSON writes it: JSON stays the same value."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in _KEPT else json.dumps(character)[1:-1]
        for character in text
    )


class TerminalFile:
    """A terminal as a text file for data."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(_escaped(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


#: The beginnings of a cell that a spreadsheet takes for a formula; white space before them is skipped by some.
FORMULA = re.compile(r"[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def without_formula(cell: Any) -> Any:
    """The cell with an apostrophe before a text that a spreadsheet would compute; numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell
