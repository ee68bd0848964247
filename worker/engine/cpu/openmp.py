"""The time that OpenMP's threads spin before they sleep; set before torch loads the library, which reads it once."""

from __future__ import annotations

import os

#: Turns of GNU OpenMP's waiting loop, some microseconds, before a thread sleeps. Its default spins for milliseconds.
#: A spinning thread holds the processor that its partner waits for, so on a busy machine a step took ten times as long.
SPIN_COUNT = 1000


def let_waiting_threads_sleep() -> None:
    """Shortens the spinning of idle OpenMP threads, unless the environment says how they wait."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
