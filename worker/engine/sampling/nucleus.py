"""The nucleus of one row: the most probable tokens whose cumulative probability does not exceed `top_p`.

The first token stays even where it exceeds `top_p` alone (top-p sampling of Holtzman et al., "The Curious Case of
Neural Text Degeneration", ICLR 2020, but without the token that crosses `top_p`). No vocabulary is sorted: few tokens
usually hold the nucleus, and those are sorted; otherwise a histogram finds the one bin of the cutoff.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

#: A cumulative probability this little above `top_p` is rounding, not excess (0.1 + 0.1 + 0.1 is not above 0.3).
TOP_P_SLACK = 1e-6

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


def nucleus(weights: Weights, top_p: float) -> Nucleus:
    """The nucleus of unnormalised probabilities [vocab], for `top_p` < 1; among equal weights lower ids come first."""
    total = float(weights.sum(dtype=np.float64))
    limit = (top_p + TOP_P_SLACK) * total
    is_likely = weights > MIN_PROBABILITY * total
    if np.count_nonzero(is_likely) <= MAX_SORTED:
        ids = np.flatnonzero(is_likely)
        likely = weights[ids]
        if float(likely.sum(dtype=np.float64)) > limit:
            cutoff = _cutoff(likely, limit, sum_above=0.0, num_above=0)
            is_kept = _is_kept(likely, cutoff)
            return Nucleus(ids[is_kept], likely[is_kept], cutoff.num_kept)
    cutoff = _cutoff_by_histogram(weights, limit)
    return Nucleus(None, weights * _is_kept(weights, cutoff), cutoff.num_kept)


def _cutoff_by_histogram(weights: Weights, limit: float) -> Cutoff:
    """The cutoff of many weights [vocab]; bins are by bit pattern, which orders positive floats as their values do."""
    bins = weights.view(np.int32) >> BIN_SHIFT
    sums = np.bincount(bins, weights=weights)[::-1].cumsum()  # the largest weights first
    position = min(int(np.searchsorted(sums, limit, side="right")), len(sums) - 1)
    cutoff_bin = len(sums) - 1 - position
    num_above = int(np.count_nonzero(bins > cutoff_bin))
    sum_above = float(sums[position - 1]) if position else 0.0
    return _cutoff(weights[bins == cutoff_bin], limit, sum_above, num_above)


def _cutoff(candidates: Weights, limit: float, sum_above: float, num_above: int) -> Cutoff:
    """The cutoff among candidates, beside `num_above` larger weights with the sum `sum_above`."""
    values = np.sort(candidates)[::-1]
    num_within = int(np.searchsorted(sum_above + values.cumsum(dtype=np.float64), limit, side="right"))
    if num_above + num_within == 0:
        num_within = 1  # the first exceeds `top_p` alone
    if num_within == 0:  # every larger weight, and none of the candidates
        return Cutoff(np.nextafter(values[0], np.float32(np.inf)), 0, num_above, False)
    value = values[num_within - 1]
    ascending = values[::-1]
    first = len(values) - int(np.searchsorted(ascending, value, side="right"))
    end = len(values) - int(np.searchsorted(ascending, value, side="left"))
    return Cutoff(value, num_within - first, num_above + num_within, end > num_within)


def _is_kept(weights: Weights, cutoff: Cutoff) -> NDArray[np.bool_]:
    is_kept = weights >= cutoff.value
    if cutoff.has_more_equal:
        is_kept[np.flatnonzero(weights == cutoff.value)[cutoff.num_equal :]] = False
    return is_kept
