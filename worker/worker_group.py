"""`worker start` as a parent of the processes that work: one for each device, started again when it dies.

The parent imports little and does nothing else, so that what ends a worker does not end its restarts. Knows processes
and exit codes, not their devices.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from models.child_process import end_with_parent

PARENT_CHECK_SECONDS = 1.0

#: Pauses before a restart; the last one repeats. A member that has worked for a while begins anew.
RESTART_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
WORKED_SECONDS = 60.0

#: Starts that fail in a row, before the first one that was ready, until the group gives up.
MAX_FAILED_STARTS = 5

#: Ends in a row because the database refuses what a member asks, until the group gives up; a member that worked for so
#: long meanwhile begins anew.
MAX_REJECTIONS = 5
SERVED_SECONDS = 3600.0

#: After a second signal the members have so long.
KILL_SECONDS = 4.5

#: Exit codes of members that are not restarted: an end in order, and before the first ready one wrong use. One that the
#: database refuses is restarted a few times, for a person may give it the rights meanwhile.
ENDED_IN_ORDER, WRONG_USE, REFUSED = 0, 2, 3

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class GroupMember:
    """One process of the group: its name in messages, and its main function, which returns the exit code.

    The main function calls its argument when it is ready for work.
    """

    name: str
    run: Callable[[Callable[[], None]], int]
    num_failures: int = 0  # in a row
    num_rejections: int = 0  # likewise
    has_been_ready: bool = False
    started: float = 0.0
    readiness: int | None = None  # the pipe that tells it


class WorkerGroup:
    """Runs until every member has ended and is not to be restarted; `say` takes a line for the terminal."""

    def __init__(self, members: list[GroupMember], say: Callable[[str], None], parent_pid: int | None = None) -> None:
        self._members = members
        self._say = say
        self._parent_pid = parent_pid  # the producer whose end ends the group
        self._running: dict[int, GroupMember] = {}
        self._due: list[tuple[float, GroupMember]] = []
        self._num_signals = 0
        self._kill_at: float | None = None
        self._worst = 0
        self._signals = os.pipe()
        os.set_blocking(self._signals[1], False)

    def run(self) -> int:
        """Starts the members and waits for them; returns the worst exit code."""
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in STOPPING_SIGNALS:
            if number != signal.SIGHUP or not is_nohup:
                signal.signal(number, self._forward)
        signal.signal(signal.SIGCHLD, self._wake)
        for member in self._members:
            self._start(member)
        while self._running or self._due:
            self._sleep()
            if self._parent_pid not in (None, os.getppid()) and not self._num_signals:
                self._forward(signal.SIGTERM, None)
            self._reap()
            self._start_due()
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                self._signal_all(signal.SIGKILL)
        return self._worst

    def _sleep(self) -> None:
        """Sleeps until a signal, a member's readiness, or the next thing to do."""
        pipes = {member.readiness: member for member in self._running.values() if member.readiness is not None}
        times = [at for at, _ in self._due] + ([] if self._kill_at is None else [self._kill_at])
        seconds = min([PARENT_CHECK_SECONDS, *(max(0.0, at - time.monotonic()) for at in times)])
        ready, _, _ = select.select([self._signals[0], *pipes], [], [], seconds)
        for descriptor in ready:
            said = os.read(descriptor, 64)
            if descriptor in pipes:
                member = pipes[descriptor]
                member.has_been_ready |= bool(said)
                self._close_readiness(member)

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if (member := self._running.pop(pid, None)) is not None:
                self._ended(member, os.waitstatus_to_exitcode(status))

    def _ended(self, member: GroupMember, code: int) -> None:
        if member.readiness is not None:
            with suppress(BlockingIOError):  # it may have become ready just before
                os.set_blocking(member.readiness, False)
                member.has_been_ready |= bool(os.read(member.readiness, 64))
            self._close_readiness(member)
        if self._num_signals:
            self._worst = max(self._worst, 0 if code in (-signal.SIGTERM, -signal.SIGKILL) else abs(code))
        elif self._is_over(member, code):
            self._worst = max(self._worst, code)
        else:
            self._restart(member, code)

    def _is_over(self, member: GroupMember, code: int) -> bool:
        """Whether a member is not started again after this exit code; it has said why itself."""
        if code == REFUSED:
            has_served = time.monotonic() - member.started >= SERVED_SECONDS
            member.num_rejections = 1 if has_served else member.num_rejections + 1
        is_useless = code in (WRONG_USE, REFUSED) and not member.has_been_ready
        return code == ENDED_IN_ORDER or is_useless or (code == REFUSED and member.num_rejections >= MAX_REJECTIONS)

    def _restart(self, member: GroupMember, code: int) -> None:
        has_worked = member.has_been_ready and time.monotonic() - member.started >= WORKED_SECONDS
        member.num_failures = 1 if has_worked else member.num_failures + 1
        if not member.has_been_ready and member.num_failures >= MAX_FAILED_STARTS:
            self._say(f"{member.name} ended with exit code {code} at its start, {member.num_failures} times in a row")
            self._worst = max(self._worst, abs(code))
            return
        seconds = RESTART_SECONDS[min(member.num_failures, len(RESTART_SECONDS)) - 1]
        self._say(f"{member.name} ended with exit code {code}, starting it again in {seconds:.0f} s")
        self._due.append((time.monotonic() + seconds, member))

    def _start_due(self) -> None:
        now = time.monotonic()
        due = [member for at, member in self._due if at <= now]
        self._due = [] if self._num_signals else [(at, member) for at, member in self._due if at > now]
        for member in due:
            self._start(member)

    def _start(self, member: GroupMember) -> None:
        """Starts a member, unless the group has been told to stop: the signal is not forwarded a second time."""
        sys.stdout.flush()
        sys.stderr.flush()
        follow_parent = end_with_parent()
        # A signal between the fork and the note of the number would be forwarded to nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
        member.started = time.monotonic()
        try:
            if not self._num_signals:
                self._fork(member, follow_parent)
        except OSError as error:  # no memory or number for another process, as after an end for want of memory
            self._say(f"{member.name} cannot be started: {error.strerror}")
            self._restart(member, 1)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)

    def _fork(self, member: GroupMember, follow_parent: Callable[[], None] | None) -> None:
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(writer)
            raise
        if not pid:
            self._be(member, reader, writer, follow_parent)
        os.close(writer)
        member.readiness = reader
        self._running[pid] = member

    def _be(self, member: GroupMember, reader: int, writer: int, follow_parent: Callable[[], None] | None) -> None:
        """Runs the member in the new process, and ends that with its exit code."""
        code = 1
        try:
            for descriptor in (reader, *self._signals):
                os.close(descriptor)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all: the parent's to handle
                signal.signal(number, signal.SIG_IGN)
            if follow_parent is not None:
                follow_parent()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
            code = member.run(lambda: _announce(writer))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _close_readiness(self, member: GroupMember) -> None:
        assert member.readiness is not None
        os.close(member.readiness)
        member.readiness = None

    def _forward(self, number: int, frame: object) -> None:
        """Sends SIGTERM to every member, each time: a second one ends their grace, and soon themselves."""
        self._num_signals += 1
        if self._num_signals == 2:
            self._kill_at = time.monotonic() + KILL_SECONDS
        self._signal_all(signal.SIGTERM)
        self._wake(number, frame)

    def _signal_all(self, number: int) -> None:
        for pid in list(self._running):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wake(self, number: int, frame: object) -> None:  # noqa: ARG002
        with suppress(BlockingIOError):
            os.write(self._signals[1], b"!")


def _announce(writer: int) -> None:
    with suppress(OSError):  # the parent has ended
        os.write(writer, b"!")
