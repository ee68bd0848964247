"""`worker start` on several devices: one member each, started again when it dies, told when it is to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

RESTART_SECONDS = 1.0
PARENT_CHECK_SECONDS = 1.0

#: Exit codes of a member that is not started again: in order, or for a reason that would only repeat.
ENDED_IN_ORDER, WRONG_USE = 0, 2


@dataclass(frozen=True)
class GroupMember:
    """One process of the group: a name for people, the command and its environment."""

    name: str
    command: list[str]
    environment: dict[str, str]


class WorkerGroup:
    """Runs until all members have ended for good."""

    def __init__(self, members: list[GroupMember], say: Callable[[str], None], parent_pid: int | None = None) -> None:
        self._members = members
        self._say = say
        self._parent_pid = parent_pid  # the producer whose end ends the group
        self._running: dict[int, GroupMember] = {}
        self._is_stopping = False

    def run(self) -> int:
        """Returns the worst exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        if self._parent_pid is not None:
            signal.signal(signal.SIGALRM, self._check_parent)
            signal.setitimer(signal.ITIMER_REAL, PARENT_CHECK_SECONDS, PARENT_CHECK_SECONDS)
        for member in self._members:
            self._start(member)
        worst = 0
        while self._running:
            pid, status = os.wait()
            if pid not in self._running:
                continue
            member = self._running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._is_stopping and code == -signal.SIGTERM:
                continue  # told to stop before it had begun
            if self._is_stopping or code in (ENDED_IN_ORDER, WRONG_USE):
                worst = max(worst, abs(code))
                continue
            self._say(f"{member.name} ended with exit code {code}, starting it again")
            time.sleep(RESTART_SECONDS)
            if not self._is_stopping:
                self._start(member)
        return worst

    def _start(self, member: GroupMember) -> None:
        process = subprocess.Popen(member.command, env=member.environment)
        process.returncode = 0  # `run` waits for it, not the Popen object
        self._running[process.pid] = member

    def _check_parent(self, number: int, frame: object) -> None:
        if os.getppid() != self._parent_pid and not self._is_stopping:
            self._forward(number, frame)

    def _forward(self, number: int, frame: object) -> None:  # noqa: ARG002
        """Each SIGTERM goes on: a second one ends the grace."""
        self._is_stopping = True
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)
