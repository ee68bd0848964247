"""The two outputs: data goes to stdout, messages go to stderr. The only module that makes Rich consoles.

Both carry text of strangers: neither markup nor emoji codes are read in it, and control characters are escaped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from producer.terminal_text import TerminalFile, visible

#: The width of a table in a file or a pipe; Rich would cut it at 80.
PIPED_WIDTH = 200


class PlainConsole(Console):
    """A console for which a string is a text, wherever it stands: in a line, a table or a rule."""

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)
        self.is_interactive &= self.file.isatty()  # FORCE_COLOR asks for colors in a file, not for frames

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


#: For messages; a piped one stays on one line.
stderr = PlainConsole(stderr=True)

_has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
stdout = PlainConsole(width=None if _has_width else PIPED_WIDTH)


def say(message: str) -> None:
    """Prints a message for the person on stderr."""
    stderr.print(message)


def print_and_act(text: str, act: Callable[[], int]) -> int:
    """Prints a line of data, then acts; what cannot be printed is told when that is done."""
    try:
        print_data(text)
        sys.stdout.flush()
    finally:
        code = act()
    return code


def data_out() -> Any:
    """Standard output for data: as it is, but escaped on a terminal."""
    return TerminalFile(sys.stdout) if sys.stdout.isatty() else sys.stdout


def print_data(text: str) -> None:
    """Prints a line of data for programs, or for a person who looks at it."""
    print(text, file=data_out())  # noqa: T201
