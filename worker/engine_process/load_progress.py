"""The progress of an engine process while it loads its model: it computes, reads or writes, or it stands still."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

#: A process that waits does less than this: its threads look around, and it writes a line of a log.
LEAST_CPU_SECONDS = 1.0
LEAST_BYTES = 2**20


@dataclass(frozen=True)
class Work:
    """The work of a process since its start."""

    cpu_seconds: float
    num_bytes: int  # read and written

    def is_beyond(self, earlier: Work) -> bool:
        return (
            self.cpu_seconds - earlier.cpu_seconds >= LEAST_CPU_SECONDS
            or self.num_bytes - earlier.num_bytes >= LEAST_BYTES
        )


def work_of(process_id: int) -> Work:
    """The work of a process; none for one that has ended."""
    try:
        process = psutil.Process(process_id)
        times = process.cpu_times()
        counters = process.io_counters() if hasattr(process, "io_counters") else None  # not on a Mac
    except psutil.Error:
        return Work(0.0, 0)
    num_bytes = 0 if counters is None else counters.read_chars + counters.write_chars
    return Work(times.user + times.system, num_bytes)


class LoadProgress:
    """Tells for how long a process has stood still; `look` gives its work so far, every `interval` seconds.

    Time is counted in looks: the clock goes on while worker and engine are both suspended.
    """

    def __init__(self, look: Callable[[], Work], interval: float) -> None:
        self._look = look
        self._interval = interval
        self._last, self._num_still = look(), 0

    def seconds_still(self) -> float:
        """Looks once more; returns the seconds since the process last did something to speak of."""
        work = self._look()
        self._num_still += 1
        if work.is_beyond(self._last):
            self._last, self._num_still = work, 0
        return self._num_still * self._interval
