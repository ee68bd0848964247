"""SIGINT, SIGTERM and SIGHUP of a command that decodes: the first ends it in order, the second at once.

A handler only notes a signal, because code that runs might swallow an exception, or be between the start of a process
and its note. Blocks that change nothing half way are ended at once.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from models.entry_point import EXIT_INTERRUPTED, lead_nowhere
from producer.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The signals that came so far, and the sentences about them."""

    def __init__(self) -> None:
        self.num_signals = 0
        self.notice = "interrupted, ending"  # told at the first signal
        self.outcome = "nothing was submitted"  # told at the end
        self._num_told = 0
        self._ends_at_once = False
        self._before: list[tuple[signal.Signals, Any]] = []
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)

    def __enter__(self) -> Self:
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in SIGNALS if number != signal.SIGHUP or not is_nohup]
        self._before = [(number, signal.signal(number, self._note)) for number in heeded]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def check(self) -> None:
        """Raises `KeyboardInterrupt` once a signal came."""
        self.tell()
        if self.num_signals:
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Sleeps; a signal ends the sleep."""
        ready, _, _ = select.select([self._reader], [], [], seconds)
        if ready:
            os.read(self._reader, 64)
        self.tell()

    def checked_sleep(self, seconds: float) -> None:
        """Sleeps. Raises `KeyboardInterrupt` once a signal came."""
        self.sleep(seconds)
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal ends where it is, with `KeyboardInterrupt`."""
        self.check()
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False
        self.check()

    def hold(self) -> None:
        """In such a block: from here to its end a signal waits, for what is done now cannot be taken back."""
        self.check()
        self._ends_at_once = False

    def tell(self) -> None:
        """Says what happens, once for each of the first two signals."""
        while self._num_told < min(self.num_signals, 2):
            self._num_told += 1
            say(self.notice if self._num_told == 1 else "ending at once")

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.num_signals += 1
        if number == signal.SIGHUP:
            _leave_terminal()
        if self.num_signals == 2:
            _leave_paused_readers()
        if self._ends_at_once:
            self._ends_at_once = False
            raise KeyboardInterrupt
        os.write(self._writer, b"!")


def run_interruptibly(command: Callable[[Interruption], int]) -> int:
    """Runs the command; returns its exit code, or that of an interrupted one."""
    with Interruption() as interruption:
        try:
            return command(interruption)
        except KeyboardInterrupt:
            say(f"interrupted; {interruption.outcome}")
            return EXIT_INTERRUPTED


def _leave_terminal() -> None:
    """Lets what is written to a closed terminal vanish, instead of failing."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            lead_nowhere(descriptor)


def _leave_paused_readers() -> None:
    """Lets what nobody takes out of a full pipe vanish (Ctrl-S, a `less`): the write that waits goes on, and ends."""
    for descriptor in (1, 2):
        if not select.select([], [descriptor], [], 0)[1]:
            lead_nowhere(descriptor)
