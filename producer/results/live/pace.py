"""The time that a run has left: its open jobs times the measured seconds per job. Knows no database.

The seconds are counted from end to end of jobs since decoding began, not since watching did: neither the load of a
model nor a night's pause is in them. Nothing is said before the first round of jobs, those that began together, is
nearly over: the first to end are the shortest, and of a round of equal ones all end at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Ends before which nothing is said, and the part of the first round that has to be over; or so many times the longest.
LEAST_ENDS, LEAST_PART, LONGEST_TIMES = 5, 0.9, 8

#: A silence of twice the longest job, and this, is a pause: the pace is that of after it.
PAUSE_SECONDS = 5.0


@dataclass(frozen=True)
class End:
    """The end of a job that ran: its time, in seconds of any epoch, and the seconds that it was worked on."""

    at: float
    seconds: float = 0.0


def seconds_left(ends: Sequence[End], num_left: int, num_slots: int, now: float, *, is_whole: bool) -> float | None:
    """The time until the last of `num_left` jobs ends; None while too little is known.

    `ends` are the latest in their order, all there are with `is_whole`; `num_slots` run side by side.
    """
    if not ends:
        return None
    pause = 2 * max(end.seconds for end in ends) + PAUSE_SECONDS
    since = next((i for i in range(len(ends) - 1, 0, -1) if ends[i].at - ends[i - 1].at > pause), 0)
    ends, is_whole = ends[since:], is_whole or since > 0
    last, silence = ends[-1].at, now - ends[-1].at
    longest = max(end.seconds for end in ends)
    start = min(end.at - end.seconds for end in ends) if is_whole else ends[0].at
    times = [end.at - start for end in (ends if is_whole else ends[1:])]
    count = len(times)
    first_round = sum(end.at - end.seconds <= ends[0].at for end in ends)
    is_over = first_round >= LEAST_PART * num_slots or last - start >= LONGEST_TIMES * longest
    if count < LEAST_ENDS or silence > pause or (is_whole and not is_over):
        return None
    # Rounds of equal jobs end in bursts: of the last round the count that came out best, which is that behind a burst.
    per_job = min(times[k - 1] / k for k in range(max(count - num_slots, count // 2, 1), count + 1))
    mean = sum(end.seconds for end in ends) / len(ends)
    return max(num_left * per_job - silence, mean - silence, 1.0)
