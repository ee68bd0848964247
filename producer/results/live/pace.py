"""The time that a run has left, by simulating its open jobs with the durations seen so far. Knows no database.

The seconds are counted from end to end of jobs since decoding began, not since watching did: neither the load of a
model nor a night's pause is in them. The last of a run to end are its longest jobs, so the end is that of the last
one, not the jobs left times the seconds per job.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import fmean, median

from producer.results.live.durations import Durations

#: Ends before which nothing is said, and the part of the jobs that began together that has to be over.
LEAST_ENDS, LEAST_PART = 5, 0.5

#: The part of the slots' time below which ended jobs cannot have been what filled them.
LEAST_BUSY = 0.1

#: A silence of twice the longest job, and this, is a pause: the pace is that of after it.
PAUSE_SECONDS = 5.0

#: Simulations, the rounds of jobs of each, and the jobs whose mean stands for all before them.
SIMULATIONS, ROUNDS, JOBS_OF_MEAN = 9, 4, 400


@dataclass(frozen=True)
class End:
    """The end of a job that ran: its time, in seconds of any epoch, and the seconds that it was worked on.

    `longest` is the seconds that it would have taken to its `max_new_tokens`.
    """

    at: float
    seconds: float = 0.0
    longest: float = inf
    num_sequences: int = 1


def seconds_left(ends: Sequence[End], num_left: int, num_slots: int, now: float, *, is_whole: bool) -> float | None:
    """The time until the last of `num_left` jobs ends; None while too little is known.

    `ends` are the latest in their order, all there are with `is_whole`; `num_slots` run side by side.
    """
    if not ends:
        return None
    pause = 2 * max(end.seconds for end in ends) + PAUSE_SECONDS
    since = next((i for i in range(len(ends) - 1, 0, -1) if ends[i].at - ends[i - 1].at > pause), 0)
    ends, is_whole = ends[since:], is_whole or since > 0
    silence = now - ends[-1].at
    least = max(LEAST_ENDS, LEAST_PART * min(num_slots, len(ends) + num_left))
    if len(ends) < least or silence > pause:
        return None
    begin = min(end.at - end.seconds for end in ends) if is_whole else ends[0].at
    span, worked = ends[-1].at - begin, sum(end.seconds for end in ends)
    if worked < LEAST_BUSY * num_slots * span:  # the jobs wait for something else than slots
        return max(num_left * span / len(ends) - silence, 1.0)
    elapsed = running_seconds(ends, num_slots, num_left, begin, now)
    longest = max(end.longest for end in ends)
    durations = Durations([end.seconds for end in ends], elapsed, longest)
    return max(simulated_end(durations, elapsed, num_left - len(elapsed)), 1.0)


def running_seconds(ends: Sequence[End], num_slots: int, num_left: int, begin: float, now: float) -> list[float]:
    """The seconds that the running jobs have run: each began at the beginning, or when another one ended.

    Of these times each ended job takes the nearest to its own.
    """
    count = min(num_slots, num_left)
    starts = sorted([begin] * num_slots + [end.at for end in ends])[: len(ends) + count]
    for start in sorted(end.at - end.seconds for end in ends):
        place = min(bisect_left(starts, start), len(starts) - 1)
        if place and start - starts[place - 1] < starts[place] - start:
            place -= 1
        starts.pop(place)
    return [max(0.0, now - start) for start in starts[-count:]] if count else []


def simulated_end(durations: Durations, elapsed: Sequence[float], num_waiting: int) -> float:
    """The median of some simulations of the running and the waiting jobs; many that wait count by their mean."""
    num_drawn = min(num_waiting, ROUNDS * len(elapsed))
    mean = fmean(durations.draw() for _ in range(JOBS_OF_MEAN)) if num_waiting > num_drawn else 0.0
    ends = []
    for _ in range(SIMULATIONS if elapsed else 0):
        slots = [durations.draw(each) - each for each in elapsed]
        heapq.heapify(slots)
        for _ in range(num_drawn):
            heapq.heapreplace(slots, slots[0] + durations.draw())
        ends.append(max(slots) + mean * (num_waiting - num_drawn) / len(elapsed))
    return median(ends) if ends else 0.0
