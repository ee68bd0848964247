"""Long output on a terminal goes through the person's pager; short output, and that of a pipe, does not."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.cells import cell_len

#: Less ends where all fits, keeps the screen, shows bold, and moves sideways along long lines.
LESS_OPTIONS = "FRSX"


class PagerClosed(Exception):
    """The person has left the pager: the rest is not wanted."""


def pager_command() -> list[str]:
    """The words of PAGER, or `less` or `more`; empty for none, and for a PAGER that no shell could read."""
    named = os.environ.get("PAGER")
    if named is not None:
        with suppress(ValueError):
            return [] if named.strip() in ("", "cat") else shlex.split(named)
        return []
    return next(([name] for name in ("less", "more") if shutil.which(name)), [])


class PagedFile:
    """A terminal to write to: more than a screen of text goes into a pager that is started then."""

    def __init__(self, file: TextIO, command: list[str], size: os.terminal_size) -> None:
        self._file, self._command, self._size = file, command, size
        self._held: list[str] = []
        self._num_lines = 0
        self._pager: subprocess.Popen[str] | None = None

    def write(self, text: str) -> int:
        if self._pager is not None:
            self._feed(text)
        elif not self._command:
            self._file.write(text)
        else:
            self._held.append(text)
            self._num_lines += sum(max(1, -(-cell_len(line) // self._size.columns)) for line in text.splitlines())
            if self._num_lines >= self._size.lines - 1:
                self._start()
        return len(text)

    def close(self) -> None:
        """Shows what is held, or waits until the person leaves the pager."""
        if self._pager is None:
            self._file.write("".join(self._held))
            self._file.flush()
            return
        with suppress(BrokenPipeError):
            assert self._pager.stdin is not None
            self._pager.stdin.close()
        while True:
            with suppress(KeyboardInterrupt):  # the pager's own
                self._pager.wait()
                return

    def _start(self) -> None:
        try:
            self._pager = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
                env={"LESS": LESS_OPTIONS, **os.environ},
            )  # fmt: skip
        except OSError:
            self._command = []  # it is not there: the terminal shows all
        held, self._held = "".join(self._held), []
        self.write(held)

    def _feed(self, text: str) -> None:
        assert self._pager is not None and self._pager.stdin is not None
        try:
            self._pager.stdin.write(text)
        except BrokenPipeError as error:
            raise PagerClosed from error


@contextmanager
def paged(file: TextIO, *, is_wanted: bool) -> Iterator[Any]:
    """The block writes to the file, through a pager where it is wanted, the file a terminal and the text long."""
    if not (is_wanted and file.isatty()):
        yield file
        return
    out = PagedFile(file, pager_command(), shutil.get_terminal_size())
    try:
        with suppress(PagerClosed):
            yield out
    finally:
        out.close()
