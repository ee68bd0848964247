"""A load that stands still is told from one that computes, reads or writes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import pytest

from worker.engine_process.load_progress import LEAST_BYTES, LEAST_CPU_SECONDS, LoadProgress, Work, work_of


def seconds_still(works: Iterable[Work]) -> list[float]:
    """The seconds after each look, one look every ten seconds."""
    looks = iter([Work(0.0, 0), *works])
    progress = LoadProgress(lambda: next(looks), interval=10)
    return [progress.seconds_still() for _ in works]


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ([Work(0.0, 0)] * 3, [10, 20, 30]),
        ([Work(LEAST_CPU_SECONDS * n, 0) for n in (1, 2, 3)], [0, 0, 0]),
        ([Work(0.0, LEAST_BYTES * n) for n in (1, 2, 3)], [0, 0, 0]),
        ([Work(5.0, 10**9)] * 3, [0, 10, 20]),
        # Lines of a log and threads that look around are little; in the end they add up to one step of progress.
        ([Work(0.4 * n, 1000 * n) for n in (1, 2, 3, 4)], [10, 20, 0, 10]),
    ],
    ids=["still", "computes", "reads", "stopped", "idle"],
)
def test_seconds_without_work(works: list[Work], expected: list[float]) -> None:
    assert seconds_still(works) == expected


def test_the_work_of_a_real_process() -> None:
    assert work_of(os.getpid()).cpu_seconds > 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert work_of(ended.pid) == Work(0.0, 0)
