"""One draw from the weights of one row, given one uniform number; NumPy on weights [vocab], no batch.

The tokens lie on a line in the order of their ids, each as long as its weight, and the number points at a
place on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from worker.engine.sampling.nucleus import Weights, nucleus

#: Tokens whose weights are summed together before the draw finds its place.
BLOCK = 256


@dataclass(frozen=True)
class Draw:
    token_id: int
    logprob: float  # nats, of the distribution drawn from
    kept: int  # tokens that could have been drawn


def draw_from_all(weights: Weights, uniform: float, kept: int | None = None) -> Draw:
    """Draws in proportion to unnormalised weights [vocab].

    The sum is found in two levels, so that only the block the draw falls into is added up one by one.
    """
    whole = len(weights) - len(weights) % BLOCK
    blocks = weights[:whole].reshape(-1, BLOCK).sum(-1).astype(np.float64)
    if whole < len(weights):
        blocks = np.append(blocks, np.float64(weights[whole:].sum()))
    cumulative = blocks.cumsum()
    total = float(cumulative[-1])
    target = uniform * total
    # Not beyond the last block, or place, that holds anything: rounding may point there.
    block = min(int(np.searchsorted(cumulative, target, side="right")), int(np.flatnonzero(blocks)[-1]))
    before = float(cumulative[block - 1]) if block else 0.0
    inside = weights[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
    place = int(np.searchsorted(inside.cumsum(), target - before, side="right"))
    place = min(place, int(np.flatnonzero(inside)[-1]))
    logprob = math.log(inside[place]) - math.log(total)
    return Draw(block * BLOCK + place, logprob, int(np.count_nonzero(weights > 0)) if kept is None else kept)


def draw_nucleus(weights: Weights, top_p: float, uniform: float) -> Draw:
    """Draws from the nucleus of unnormalised weights [vocab], renormalised."""
    if top_p >= 1.0:
        return draw_from_all(weights, uniform)
    ids, kept_weights, num_kept = nucleus(weights, top_p)
    draw = draw_from_all(kept_weights, uniform, num_kept)
    return draw if ids is None else Draw(int(ids[draw.token_id]), draw.logprob, num_kept)
