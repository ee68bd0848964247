"""The start of a command: a Ctrl-C while its modules are imported ends it in one line.

Imports nothing of ours, so that it is ready before anything else is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module

EXIT_INTERRUPTED = 130


def run_command(module: str) -> None:
    """Runs `main` of a module, whose import takes most of a short command's time."""
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:
        # Typer makes an exit of a Ctrl-C while a subcommand imports its own modules.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _end_interrupted()
        raise


def _end_interrupted() -> None:
    sys.stderr.write("interrupted\n")
    raise SystemExit(EXIT_INTERRUPTED) from None
