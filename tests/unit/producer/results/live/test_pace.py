"""The time that is left settles: from its first showing on it is near the truth, in simulated nights."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from producer.results.live.observer import MeanSpeed
from producer.results.live.pace import End, seconds_left

LOAD_SECONDS = 30.0

DURATIONS: dict[str, Callable[[random.Random], float]] = {
    "equal": lambda _: 10.0,
    "nearly equal": lambda draw: draw.uniform(9, 11),
    "even": lambda draw: draw.uniform(5, 15),
    "cut at a length": lambda draw: min(20.0, draw.expovariate(0.05)),
}


def night(num_slots: int, num_jobs: int, draw: Callable[[], float], start: float = LOAD_SECONDS) -> list[End]:
    """The ends of jobs in slots that are filled again at once."""
    free, ends = [start] * num_slots, []
    for _ in range(num_jobs):
        begin, seconds = heapq.heappop(free), draw()
        heapq.heappush(free, begin + seconds)
        ends.append(End(begin + seconds, seconds))
    return sorted(ends, key=lambda end: end.at)


@pytest.mark.parametrize(("num_slots", "num_jobs"), [(64, 600), (8, 60), (256, 3000)])
@pytest.mark.parametrize("durations", DURATIONS)
def test_it_settles(durations: str, num_slots: int, num_jobs: int) -> None:
    draw = random.Random(num_jobs)
    ends = night(num_slots, num_jobs, lambda: DURATIONS[durations](draw))
    whole, shown = ends[-1].at - LOAD_SECONDS, []
    for step in range(100):
        now = LOAD_SECONDS + whole * step / 100
        done = [end for end in ends if end.at <= now]
        left = seconds_left(done, num_jobs - len(done), num_slots, now, is_whole=True)
        shown.append(None if left is None else (now + left - LOAD_SECONDS) / whole)
    assert None not in shown[30:]
    assert all(0.6 < ratio < 1.5 for ratio in shown if ratio is not None)


def test_the_latest_ends_alone_tell_the_pace() -> None:
    ends = night(8, 1000, lambda: 8.0)
    left = seconds_left(ends[200:500], 500, 8, ends[499].at, is_whole=False)
    assert left == pytest.approx(500, rel=0.05)


def test_a_pause_is_in_no_estimate() -> None:
    ends = night(8, 80, lambda: 8.0) + night(8, 40, lambda: 8.0, start=36_000.0)
    left = seconds_left(ends, 80, 8, ends[-1].at, is_whole=True)
    assert left == pytest.approx(80, rel=0.1)
    assert seconds_left(ends, 80, 8, ends[-1].at + 3600, is_whole=True) is None  # and nobody decodes now


def test_nothing_is_known_before_the_first_round_is_over() -> None:
    assert seconds_left([], 10, 8, 0.0, is_whole=True) is None
    ends = night(64, 600, iter(float(n) for n in range(10, 700)).__next__)
    assert seconds_left(ends[:20], 580, 64, ends[19].at, is_whole=True) is None


def test_the_mean_speed_begins_with_the_first_token() -> None:
    times = iter([0.0, 10.0, 12.0, 16.0])
    mean = MeanSpeed(lambda: next(times))
    assert [mean.add(speed) for speed in (0.0, 100.0, 400.0, 0.0)] == [None, 100.0, 100.0, pytest.approx(300.0)]
