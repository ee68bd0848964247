"""The nucleus of one row: the most probable tokens whose cumulative probability does not exceed a limit.

The first token stays even where it exceeds the limit alone. This is the top-p sampling of Holtzman et al., "The
Curious Case of Neural Text Degeneration", ICLR 2020, where `keeps_crossing` keeps the token that crosses the limit,
as Transformers does; the study's rule leaves it out. No vocabulary is sorted: few tokens usually hold the nucleus,
and those are sorted; otherwise a histogram finds the one bin of the cutoff.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

#: A cumulative probability this little beside the limit is rounding: 0.1 + 0.1 + 0.1 is neither above nor below 0.3.
SLACK = 1e-6

#: Sums of the same weights in another order differ by less.
ROUNDING = 1e-9

#: Less probable tokens are looked at only if the others do not hold the nucleus.
MIN_PROBABILITY = 1e-5

#: The most tokens that are sorted without a histogram.
MAX_SORTED = 2048

#: Bits of a weight's fp32 pattern below its bin: bins are 1/64 of their value wide.
BIN_SHIFT = 17


class Nucleus(NamedTuple):
    """The kept tokens: few by their ids, many as a row of weights."""

    ids: NDArray[np.intp] | None  # [kept], ascending; None: the weights are those of the whole vocabulary
    weights: Weights  # [kept] of the ids, or [vocab] with zeros for what is left out
    num_kept: int


class Cutoff(NamedTuple):
    """Keeps the weights above `value`, and the first `num_equal` of those equal to it."""

    value: np.float32
    num_equal: int
    num_kept: int
    has_more_equal: bool  # some weights equal to `value` are left out


def nucleus(weights: Weights, limit: float, *, keeps_crossing: bool = False) -> Nucleus:
    """The nucleus of unnormalized probabilities [vocab], for a limit < 1; among equal weights lower ids come first."""
    total = float(weights.sum(dtype=np.float64))
    mass = (max(limit - SLACK, 0.0) if keeps_crossing else limit + SLACK) * total
    if limit + SLACK >= 1.0 - ROUNDING and not keeps_crossing:
        return Nucleus(None, weights, int(np.count_nonzero(weights)))
    is_likely = weights > MIN_PROBABILITY * total
    if np.count_nonzero(is_likely) <= MAX_SORTED:
        ids = np.flatnonzero(is_likely)
        likely = weights[ids]
        if float(likely.sum(dtype=np.float64)) > mass:
            cutoff = _cutoff(likely, mass, Above(0.0, 0), keeps_crossing)
            is_kept = _is_kept(likely, cutoff)
            return Nucleus(ids[is_kept], likely[is_kept], cutoff.num_kept)
    cutoff = _cutoff_by_histogram(weights, mass, keeps_crossing)
    return Nucleus(None, weights * _is_kept(weights, cutoff), cutoff.num_kept)


class Above(NamedTuple):
    """The weights that are larger than all candidates."""

    mass: float
    number: int


def _cutoff_by_histogram(weights: Weights, mass: float, keeps_crossing: bool) -> Cutoff:
    """The cutoff of many weights [vocab]; bins are by bit pattern, which orders positive floats as their values do."""
    bins = weights.view(np.int32) >> BIN_SHIFT
    sums = np.bincount(bins, weights=weights)[::-1].cumsum()  # the largest weights first
    position = min(int(np.searchsorted(sums, mass, side="right")), len(sums) - 1)
    cutoff_bin = len(sums) - 1 - position
    num_above = int(np.count_nonzero(bins > cutoff_bin))
    sum_above = float(sums[position - 1]) if position else 0.0
    return _cutoff(weights[bins == cutoff_bin], mass, Above(sum_above, num_above), keeps_crossing)


def _cutoff(candidates: Weights, mass: float, above: Above, keeps_crossing: bool) -> Cutoff:
    """The cutoff among candidates, the most probable tokens but those above."""
    values = np.sort(candidates)[::-1]
    num_within = int(np.searchsorted(above.mass + values.cumsum(dtype=np.float64), mass, side="right"))
    if keeps_crossing:
        num_within = min(num_within + 1, len(values))
    if above.number + num_within == 0:
        num_within = 1  # the first exceeds the limit alone
    if num_within == 0:  # every larger weight, and none of the candidates
        return Cutoff(np.nextafter(values[0], np.float32(np.inf)), 0, above.number, False)
    value = values[num_within - 1]
    ascending = values[::-1]
    first = len(values) - int(np.searchsorted(ascending, value, side="right"))
    end = len(values) - int(np.searchsorted(ascending, value, side="left"))
    return Cutoff(value, num_within - first, above.number + num_within, end > num_within)


def _is_kept(weights: Weights, cutoff: Cutoff) -> NDArray[np.bool_]:
    is_kept = weights >= cutoff.value
    if cutoff.has_more_equal:
        is_kept[np.flatnonzero(weights == cutoff.value)[cutoff.num_equal :]] = False
    return is_kept
