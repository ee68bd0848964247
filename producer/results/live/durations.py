"""The distribution of the seconds that jobs take, of those that ended and of those that still run.

Jobs that ended early are the short ones. So the share of jobs that outlast a time is Kaplan and Meier's, which counts
running jobs for as long as they ran, and beyond the longest that ended it is a log-normal distribution fitted to both.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from statistics import NormalDist, fmean, pstdev

NORMAL = NormalDist()

#: The least value that a logarithm is taken of, the least deviation of logarithms, and the rounds of the fit.
LEAST_SECONDS, LEAST_DEVIATION, ROUNDS = 1e-3, 0.02, 30

#: The least share of jobs that the fitted distribution can be asked for.
LEAST_SHARE = 1e-7


class Durations:
    """Draws the seconds that a job takes; none takes more than `longest`."""

    def __init__(self, ended: Sequence[float], running: Sequence[float], longest: float) -> None:
        self._ended, self._longest = sorted(ended), longest
        self._mean, self._deviation = fit_log_normal(self._ended, running)
        self._random = random.Random(1)
        self._shares: list[float] = []  # of jobs that take no longer than each that ended
        ran, left = sorted(running), 1.0
        for number, seconds in enumerate(self._ended):
            at_risk = len(self._ended) - number + len(ran) - bisect_left(ran, seconds)
            left *= 1 - 1 / at_risk
            self._shares.append(1 - left)

    def draw(self, elapsed: float = 0.0) -> float:
        """The seconds of a job that has run for some already."""
        number = bisect_left(self._ended, elapsed)
        below = self._shares[number - 1] if number else 0.0
        number = bisect_left(self._shares, below + (1 - below) * self._random.random())
        if number < len(self._ended):
            return max(self._ended[number], elapsed)
        return self._beyond(max(self._ended[-1], elapsed))

    def _beyond(self, seconds: float) -> float:
        below = NORMAL.cdf((math.log(max(seconds, LEAST_SECONDS)) - self._mean) / self._deviation)
        if below > 1 - LEAST_SHARE:
            return seconds
        share = min(below + (1 - below) * self._random.random(), 1 - LEAST_SHARE)
        drawn = math.exp(self._mean + self._deviation * NORMAL.inv_cdf(max(share, LEAST_SHARE)))
        return max(seconds, min(drawn, self._longest))


def fit_log_normal(ended: Sequence[float], running: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation of the logarithms, by expectation and maximization: a running job takes longer than it ran."""
    worked = [each for each in ended if each > 0] or [LEAST_SECONDS]  # a job that failed at once tells of no length
    logs = [math.log(max(each, LEAST_SECONDS)) for each in worked]
    limits = [math.log(max(each, LEAST_SECONDS)) for each in running]
    mean, deviation = fmean(logs), max(pstdev(logs), LEAST_DEVIATION)
    total, squares, count = sum(logs), sum(each * each for each in logs), len(logs) + len(limits)
    for _ in range(ROUNDS):
        hazards = [deviation * _hazard((limit - mean) / deviation) for limit in limits]
        expected = total + sum(mean + hazard for hazard in hazards)
        of_limits = sum(h * (limit + mean) for h, limit in zip(hazards, limits, strict=True))
        variance = (squares + len(limits) * (mean**2 + deviation**2) + of_limits) / count - (expected / count) ** 2
        mean, deviation = expected / count, max(math.sqrt(max(variance, 0.0)), LEAST_DEVIATION)
    return mean, deviation


def _hazard(z: float) -> float:
    """The hazard rate of the normal distribution; beyond six deviations it is about the distance."""
    return z if z > 6 else NORMAL.pdf(z) / (1 - NORMAL.cdf(z))
