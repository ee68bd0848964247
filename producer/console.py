"""Where output goes: data to stdout, everything else to stderr. The only file that makes Rich consoles."""

from __future__ import annotations

import os
import sys

from rich.console import Console

#: Columns of a table that goes into a file or another program; Rich would cut it at 80.
PIPED_WIDTH = 200

#: Talk. `soft_wrap` keeps a message in one line when it is piped.
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

_has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
stdout = Console(highlight=False, soft_wrap=True, width=None if _has_width else PIPED_WIDTH)


def say(message: str) -> None:
    """A line for the person, never for the next program; the message is shown literally."""
    stderr.print(message, markup=False)
