"""The start and the end of a command: its standard streams, whatever they are, and a Ctrl-C while modules are imported.

Imports nothing of ours, so that it is ready before anything else is imported.
"""

from __future__ import annotations

import gc
import os
import select
import sys
from importlib import import_module
from io import BufferedReader, BufferedWriter, FileIO, RawIOBase, TextIOWrapper, UnsupportedOperation
from typing import Any, NoReturn

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130

#: New objects after which Python looks for garbage. Modules and rows are hardly ever any: after every 700 of them, its
#: own number, the search took a fifth of the time in which a million rows are read.
OBJECTS_PER_COLLECTION = 100_000


class OutputProblem(Exception):
    """Standard output cannot be written to."""


def run_command(module: str) -> None:
    """Runs `main` of a module, whose import takes most of a short command's time."""
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    prepare_streams()
    _check_working_directory()
    try:
        try:
            import_module(module).main()
        finally:
            sys.stdout.flush()  # at its own exit Python would only print a complaint
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as end:
        # Typer makes an exit of a Ctrl-C while a subcommand imports its own modules.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            _end_interrupted()
        raise
    except BrokenPipeError:  # the reader of our output has seen enough
        raise SystemExit(0) from None
    except OutputProblem as problem:
        _end(str(problem))


class _Input(RawIOBase):
    """Standard input. A pipe that another program made non-blocking is waited for: it has not ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                return os.readv(self._descriptor, [buffer])
            except BlockingIOError:
                _wait(self._descriptor, select.POLLIN)


class _Output(FileIO):
    """Standard output. Lost data raises `OutputProblem`, a reader that has closed its end `BrokenPipeError`."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that another program made non-blocking
                _wait(self.fileno(), select.POLLOUT)
            return written
        except OSError as error:
            self.fail(error)
            return len(data)

    def fail(self, error: OSError) -> None:
        self.lead_nowhere()
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputProblem(f"cannot write to standard output: {error.strerror}; send it elsewhere") from error

    def lead_nowhere(self) -> None:
        """Discards the buffered output: Python would write it again at its exit, and complain."""
        lead_nowhere(self.fileno())


class _Messages(_Output):
    """Standard error. A full disk, a closed terminal or a `tee` that has ended costs a message, and not the run."""

    def fail(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            self.lead_nowhere()


def _wait(descriptor: int, event: int) -> None:
    """Returns when something can be read or written."""
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


def lead_nowhere(descriptor: int) -> None:
    """Lets what is written to a descriptor vanish from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def prepare_streams() -> None:
    """Makes the standard streams, those that libraries keep for themselves too, what a command needs."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _opened_nowhere(number))
    sys.stdout = _rebuilt(sys.stdout, _Output)
    sys.stderr = _rebuilt(sys.stderr, _Messages)
    _prepare_output()
    _prepare_input()
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc, assignment]


def take_output_for_messages() -> None:
    """Lets what is written to standard output be lost as messages may: of a program whose output is its log."""
    sys.stdout = sys.__stdout__ = _rebuilt(sys.stdout, _Messages)  # type: ignore[misc]


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        _end("the working directory has been removed; cd to one that is there")


def _opened_nowhere(number: int) -> TextIOWrapper:
    """A stream that leads nowhere, in the place of a closed one.

    Without it the next file to be opened, such as a database, would get its number, and then its text.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    os.set_inheritable(number, True)
    return open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)


def _rebuilt(stream: Any, kind: type[FileIO]) -> Any:
    """The stream above a file of that kind; one without a descriptor is a test's, and stays."""
    try:
        file = kind(stream.fileno(), "w", closefd=False)
    except UnsupportedOperation:
        return stream
    is_flushed = stream.line_buffering or stream.write_through
    return TextIOWrapper(BufferedWriter(file), stream.encoding, stream.errors, line_buffering=is_flushed)


def _prepare_output() -> None:
    """Lets every text be written: to a terminal as far as it has the characters, elsewhere in UTF-8 as to files."""
    if not isinstance(sys.stdout, TextIOWrapper):
        return
    if sys.stdout.isatty():
        sys.stdout.reconfigure(errors="backslashreplace")
    else:
        sys.stdout.reconfigure(encoding="utf-8")


def _prepare_input() -> None:
    """Lets a file or a pipe be read in UTF-8, to its end; a stream without a descriptor is a test's."""
    if not isinstance(sys.stdin, TextIOWrapper) or sys.stdin.isatty():
        return
    try:
        sys.stdin = TextIOWrapper(BufferedReader(_Input(sys.stdin.fileno())), "utf-8")
    except UnsupportedOperation:
        sys.stdin.reconfigure(encoding="utf-8")


def _end(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(EXIT_USAGE) from None


def _end_interrupted() -> None:
    sys.stderr.write("interrupted\n")
    raise SystemExit(EXIT_INTERRUPTED) from None
