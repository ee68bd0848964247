"""`worker start` on several devices: one process each, restarted when it dies, stopped with the group.

Knows processes and exit codes, not their devices.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

RESTART_SECONDS = 1.0
PARENT_CHECK_SECONDS = 1.0

#: Exit codes of members that are not restarted: an end in order, and a fault that would only repeat.
ENDED_IN_ORDER, WRONG_USE = 0, 2


@dataclass(frozen=True)
class GroupMember:
    """One process of the group: the name in messages, the command and its environment."""

    name: str
    command: list[str]
    environment: dict[str, str]


class WorkerGroup:
    """Runs until every member has ended and is not to be restarted; `say` takes a line for the terminal."""

    def __init__(self, members: list[GroupMember], say: Callable[[str], None], parent_pid: int | None = None) -> None:
        self._members = members
        self._say = say
        self._parent_pid = parent_pid  # the producer whose end ends the group
        self._running: dict[int, GroupMember] = {}
        self._is_stopping = False

    def run(self) -> int:
        """Starts the members and waits for them; returns the worst exit code."""
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
                continue  # it was stopped before it handled signals
            if self._is_stopping or code in (ENDED_IN_ORDER, WRONG_USE):
                worst = max(worst, abs(code))
            else:
                self._restart(member, code)
        return worst

    def _restart(self, member: GroupMember, code: int) -> None:
        self._say(f"{member.name} ended with exit code {code}, starting it again")
        time.sleep(RESTART_SECONDS)
        if not self._is_stopping:
            self._start(member)

    def _start(self, member: GroupMember) -> None:
        process = subprocess.Popen(member.command, env=member.environment)
        process.returncode = 0  # `run` waits for it, not the Popen object
        self._running[process.pid] = member

    def _check_parent(self, number: int, frame: object) -> None:
        if os.getppid() != self._parent_pid and not self._is_stopping:
            self._forward(number, frame)

    def _forward(self, number: int, frame: object) -> None:  # noqa: ARG002
        """Sends SIGTERM to every member, each time: a second one ends their grace."""
        self._is_stopping = True
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)
