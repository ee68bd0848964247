"""The signals of a worker: a SIGTERM ends it in order, a second one soon; nothing extends the time of either."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

logger = logging.getLogger(__name__)

#: The parent forwards a signal that a service manager sends to every process: both are one.
SAME_SIGNAL_SECONDS = 0.3

#: Beyond its grace: returning jobs, closing connections, a database or broker that does not answer.
STOP_SECONDS = 30.0

#: After a second signal.
HURRY_SECONDS = 4.0

EX_FORCED = 1


def stop_this_process() -> None:
    """Ends the worker in order, as a service manager would."""
    os.kill(os.getpid(), signal.SIGTERM)


def keep_to_sigterm(worker: Any) -> None:
    """Lets a Celery worker handle SIGTERM only: its parent handles SIGINT and SIGHUP, which Celery would take too.

    At a SIGHUP Celery executes its program again, even under `nohup`.
    """
    from celery.apps.worker import install_worker_term_handler

    worker.install_platform_tweaks = install_worker_term_handler


def say_safely(line_of: Callable[[str], str]) -> None:
    """Gives Celery's words about a signal, which go past its log, the form of the log."""
    from celery.apps import worker

    def safe_say(message: str, file: Any = sys.__stderr__) -> None:
        with suppress(OSError):  # whoever read it has gone, which must not keep the worker from stopping
            os.write(file.fileno(), f"{line_of(message)}\n".encode())

    worker.safe_say = safe_say


class Stopping:
    """Tells the first signal to stop from a second one, and ends the process when its time is over."""

    def __init__(self, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._last: float | None = None

    def note_signal(self) -> bool | None:
        """True for the first signal, false for a further one, None for an echo of the last."""
        now, last = time.monotonic(), self._last
        self._last = now
        if last is None:
            return True
        return None if now - last < SAME_SIGNAL_SECONDS else False

    def end_within(self, seconds: float) -> None:
        """Ends the process after that time, whatever its other threads wait for; their jobs' leases run out."""
        if math.isinf(seconds):
            return
        Thread(target=self._end_later, args=(seconds,), name="end", daemon=True).start()

    def _end_later(self, seconds: float) -> None:
        time.sleep(seconds)
        # In a thread: whoever reads the log may be stuck too.
        report = Thread(target=logger.critical, args=("%.0f s after the signal to stop: ending at once", seconds))
        report.daemon = True
        report.start()
        report.join(0.5)
        self._end(EX_FORCED)


def ignore_terminal() -> None:
    """Ignores what a terminal or a service manager signals to whole groups: only its parent ends this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
