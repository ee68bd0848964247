"""The time that is left settles: from its first showing on it is near the truth, in simulated nights."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from math import inf

import pytest

from producer.results.live.durations import Durations
from producer.results.live.observer import MeanSpeed
from producer.results.live.pace import End, running_seconds, seconds_left

LOAD_SECONDS = 30.0

DURATIONS: dict[str, Callable[[random.Random], float]] = {
    "equal": lambda _: 10.0,
    "nearly equal": lambda draw: draw.uniform(9, 11),
    "even": lambda draw: draw.uniform(5, 15),
    "cut at a length": lambda draw: min(20.0, draw.expovariate(0.05)),
}

#: Durations that `max_new_tokens` cuts.
LONGEST = {"cut at a length": 20.0}

#: Durations whose longest are many times the mean, as recorded answers of chat models have them, and their bound.
LONG_TAILED: dict[str, tuple[Callable[[random.Random], float], float]] = {
    "the lengths of the benchmarks": (lambda draw: min(256.0, max(8.0, draw.lognormvariate(3.4, 0.9))), 256.0),
    "cut seldom": (lambda draw: min(231.0, 8.0 + draw.expovariate(1 / 45)), 300.0),
    "a wide log-normal": (lambda draw: min(60.0, draw.lognormvariate(2.0, 1.0)), 60.0),
}


def night(num_slots: int, num_jobs: int, draw: Callable[[], float], start: float = LOAD_SECONDS) -> list[End]:
    """The ends of jobs in slots that are filled again at once."""
    free, ends = [start] * num_slots, []
    for _ in range(num_jobs):
        begin, seconds = heapq.heappop(free), draw()
        heapq.heappush(free, begin + seconds)
        ends.append(End(begin + seconds, seconds))
    return sorted(ends, key=lambda end: end.at)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("num_slots", "num_jobs"), [(64, 600), (16, 400), (64, 2000)])
@pytest.mark.parametrize("name", LONG_TAILED)
def test_it_is_near_the_truth_after_a_fifth_of_long_tailed_jobs(
    name: str, num_slots: int, num_jobs: int, seed: int
) -> None:
    """The last job to end is one of the longest: the jobs left times the seconds per job are a fifth of the truth."""
    (duration, longest), draw = LONG_TAILED[name], random.Random(seed)
    ends = night(num_slots, num_jobs, lambda: duration(draw))
    ends = [End(end.at, end.seconds, longest) for end in ends]
    errors = []
    for part in (0.2, 0.35, 0.5, 0.65, 0.8):
        done = ends[: int(part * num_jobs)]
        left = seconds_left(done, num_jobs - len(done), num_slots, done[-1].at, is_whole=True)
        assert left is not None
        assert 1 / 1.5 < left / (ends[-1].at - done[-1].at) < 1.5, part
        errors.append(abs(done[-1].at + left - ends[-1].at) / (ends[-1].at - LOAD_SECONDS))
    assert max(errors[3:]) <= max(0.15, *errors[:2])  # it settles


def test_running_jobs_are_known_by_the_ends_before_them() -> None:
    ends = night(3, 40, iter([5.0, 90.0, 7.0] + [10.0] * 37).__next__)
    done = [end for end in ends if end.at <= LOAD_SECONDS + 61.0]
    elapsed = running_seconds(done, 3, 40 - len(done), LOAD_SECONDS, LOAD_SECONDS + 61.0)
    assert sorted(elapsed) == pytest.approx([4.0, 6.0, 61.0])
    assert running_seconds(done, 3, 0, LOAD_SECONDS, LOAD_SECONDS + 61.0) == []


def test_no_job_is_drawn_longer_than_it_can_be() -> None:
    draw = random.Random(5)
    ended = [draw.lognormvariate(2, 1) for _ in range(50)]
    durations = Durations([min(each, 30.0) for each in ended], [25.0] * 20, longest=60.0)
    drawn = [durations.draw(elapsed) for elapsed in (0.0, 20.0, 50.0) for _ in range(300)]
    assert all(0 < each <= 60.0 for each in drawn) and max(drawn) > 30.0
    assert all(each >= 20.0 for each in drawn[300:600]) and all(each >= 50.0 for each in drawn[600:])


@pytest.mark.parametrize(("num_slots", "num_jobs"), [(64, 600), (8, 60), (256, 3000)])
@pytest.mark.parametrize("durations", DURATIONS)
def test_it_settles(durations: str, num_slots: int, num_jobs: int) -> None:
    draw = random.Random(num_jobs)
    ends = night(num_slots, num_jobs, lambda: DURATIONS[durations](draw))
    whole, shown = ends[-1].at - LOAD_SECONDS, []
    for step in range(0, 100, 5):
        now = LOAD_SECONDS + whole * step / 100
        done = [End(end.at, end.seconds, LONGEST.get(durations, inf)) for end in ends if end.at <= now]
        left = seconds_left(done, num_jobs - len(done), num_slots, now, is_whole=True)
        shown.append(None if left is None else (now + left - LOAD_SECONDS) / whole)
    assert None not in shown[6:]
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
