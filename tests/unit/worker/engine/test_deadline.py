"""The time of a self check is the thread's own: a busy machine does not make a model slow."""

from __future__ import annotations

import time

import pytest

from worker.engine.loading.deadline import Deadline, TookTooLong


def work(seconds: float) -> None:
    """Computes for so many seconds of the thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_waiting_for_a_processor_does_not_count() -> None:
    deadline = Deadline(0.05)
    time.sleep(0.1)  # as a thread that other programs keep from its processor
    deadline.check()
    work(0.06)
    with pytest.raises(TookTooLong):
        deadline.check()


def test_compiling_does_not_count() -> None:
    deadline = Deadline(0.05)
    with deadline.stopped():
        work(0.1)
    deadline.check()
    work(0.06)
    with pytest.raises(TookTooLong):
        deadline.check()
