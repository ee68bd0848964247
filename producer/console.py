"""The two outputs: data goes to stdout, messages go to stderr. The only module that makes Rich consoles."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from producer.render import visible

#: The width of a table in a file or a pipe; Rich would cut it at 80.
PIPED_WIDTH = 200

#: For messages. `soft_wrap` keeps a piped message on one line.
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

_has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
stdout = Console(highlight=False, soft_wrap=True, width=None if _has_width else PIPED_WIDTH)


def say(message: str) -> None:
    """Prints a message for the person on stderr, without interpreting markup or control characters in it."""
    stderr.print(visible(message), markup=False)
