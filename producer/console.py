"""Where output goes: data to stdout, everything else to stderr. The only file that makes Rich consoles."""

from __future__ import annotations

from rich.console import Console

#: Talk. `soft_wrap` keeps a message in one line when it is piped.
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

stdout = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """A line for the person, never for the next program; the message is shown literally."""
    stderr.print(message, markup=False)
