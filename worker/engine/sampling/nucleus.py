"""The nucleus: the most probable tokens whose cumulative probability does not exceed `top_p`, or the first alone.

A vocabulary is not sorted for it. Where few tokens hold the nucleus, those are sorted; where it takes many,
a histogram of the weights finds the one bin in which the cut lies, and that bin is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

#: A cumulative probability this little above `top_p` is rounding, not excess (0.1 + 0.1 + 0.1 is not above 0.3).
TOP_P_SLACK = 1e-6

#: Tokens less probable than this are left out of the first look.
MIN_SHARE = 1e-5

#: More tokens than this are not sorted at once.
MAX_SORTED = 2048

#: Bits of a weight's fp32 pattern that do not count for its bin: bins are 1/64 wide, relative to their place.
BIN_SHIFT = 17


@dataclass(frozen=True)
class Cut:
    """Kept are the weights above `value`, and the first `num_equal` of those equal to it."""

    value: np.float32
    num_equal: int
    num_kept: int
    are_more_equal: bool


def nucleus(weights: Weights, top_p: float) -> tuple[NDArray[np.intp] | None, Weights, int]:
    """The nucleus of unnormalised probabilities [vocab], for `top_p` < 1.

    Returns its ids in ascending order with their weights [kept] and their number; where they are many no ids, but
    weights [vocab] with zeros for what is left out.
    """
    total = float(weights.sum(dtype=np.float64))
    limit = (top_p + TOP_P_SLACK) * total
    are_likely = weights > MIN_SHARE * total
    if np.count_nonzero(are_likely) <= MAX_SORTED:
        ids = np.flatnonzero(are_likely)
        likely = weights[ids]
        if float(likely.sum(dtype=np.float64)) > limit:
            cut = _cut(likely, limit, above=0.0, num_above=0)
            is_kept = _is_kept(likely, cut)
            return ids[is_kept], likely[is_kept], cut.num_kept
    cut = _cut_by_histogram(weights, limit)
    return None, weights * _is_kept(weights, cut), cut.num_kept


def _cut_by_histogram(weights: Weights, limit: float) -> Cut:
    """The cut of many weights: the patterns of positive floats are ordered as the floats are."""
    bins = weights.view(np.int32) >> BIN_SHIFT
    sums = np.bincount(bins, weights=weights)[::-1].cumsum()  # the heaviest bin first
    place = min(int(np.searchsorted(sums, limit, side="right")), len(sums) - 1)
    bin_of_cut = len(sums) - 1 - place
    num_above = int(np.count_nonzero(bins > bin_of_cut))
    above = float(sums[place - 1]) if place else 0.0
    return _cut(weights[bins == bin_of_cut], limit, above, num_above)


def _cut(candidates: Weights, limit: float, above: float, num_above: int) -> Cut:
    """The cut among candidates, where `num_above` heavier tokens weigh `above` together."""
    values = np.sort(candidates)[::-1]
    num_within = int(np.searchsorted(above + values.cumsum(dtype=np.float64), limit, side="right"))
    if num_above + num_within == 0:
        num_within = 1  # the first exceeds `top_p` alone
    if num_within == 0:  # all that is heavier, and nothing of these
        return Cut(np.nextafter(values[0], np.float32(np.inf)), 0, num_above, False)
    value = values[num_within - 1]
    ascending = values[::-1]
    first = len(values) - int(np.searchsorted(ascending, value, side="right"))
    last = len(values) - int(np.searchsorted(ascending, value, side="left"))
    return Cut(value, num_within - first, num_above + num_within, last > num_within)


def _is_kept(weights: Weights, cut: Cut) -> NDArray[np.bool_]:
    is_kept = weights >= cut.value
    if cut.are_more_equal:
        is_kept[np.flatnonzero(weights == cut.value)[cut.num_equal :]] = False
    return is_kept
