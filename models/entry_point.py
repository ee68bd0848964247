"""The start of a command: a Ctrl-C while its modules are imported ends it in one line.

Imports nothing of ours, so that it is ready before anything else is imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from io import TextIOWrapper

EXIT_INTERRUPTED = 130


def run_command(module: str) -> None:
    """Runs `main` of a module, whose import takes most of a short command's time."""
    _prepare_output()
    try:
        import_module(module).main()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:
        # Typer makes an exit of a Ctrl-C while a subcommand imports its own modules.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _end_interrupted()
        raise


def _prepare_output() -> None:
    """Lets every text be written: to a terminal as far as it has the characters, elsewhere in UTF-8 as to files."""
    if not isinstance(sys.stdout, TextIOWrapper):
        return
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout.reconfigure(encoding="utf-8")


def _end_interrupted() -> None:
    sys.stderr.write("interrupted\n")
    raise SystemExit(EXIT_INTERRUPTED) from None
