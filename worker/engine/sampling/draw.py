"""One draw from the weights [vocab] of one row by inverse transform sampling, in NumPy.

The cumulative sum goes over tokens in the order of their ids; the uniform number picks a point on it. Knows no batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.engine.sampling.nucleus import Weights, nucleus

#: Tokens whose weights are summed together before the draw looks inside one block.
BLOCK = 256


@dataclass(frozen=True)
class Draw:
    """A token drawn from one row."""

    token_id: int
    logprob: float  # nats, of the distribution drawn from
    kept: int  # tokens that could have been drawn


def draw_categorical(weights: Weights, uniform: float, kept: int | None = None) -> Draw:
    """Draws in proportion to unnormalized weights [vocab].

    The cumulative sum has two levels, so that only the block of the drawn token is summed token by token.
    """
    block_sums = _block_sums(weights)
    cumulative = block_sums.cumsum()
    total = float(cumulative[-1])
    target = uniform * total
    # Not beyond the last block, or token, of any weight: rounding may point there.
    block = min(int(np.searchsorted(cumulative, target, side="right")), int(np.flatnonzero(block_sums)[-1]))
    before = float(cumulative[block - 1]) if block else 0.0
    in_block = weights[block * BLOCK : (block + 1) * BLOCK].astype(np.float64)
    offset = int(np.searchsorted(in_block.cumsum(), target - before, side="right"))
    offset = min(offset, int(np.flatnonzero(in_block)[-1]))
    logprob = math.log(in_block[offset]) - math.log(total)
    return Draw(block * BLOCK + offset, logprob, int(np.count_nonzero(weights > 0)) if kept is None else kept)


def _block_sums(weights: Weights) -> NDArray[np.float64]:
    """The sums [blocks] of `BLOCK` weights each; the last block may be shorter."""
    whole = len(weights) - len(weights) % BLOCK
    sums = weights[:whole].reshape(-1, BLOCK).sum(-1).astype(np.float64)
    return np.append(sums, np.float64(weights[whole:].sum())) if whole < len(weights) else sums


def draw_nucleus(
    weights: Weights, limit: float, uniform: float, *, keeps_crossing: bool = False, min_p: float = 0.0
) -> Draw:
    """Draws from the nucleus of unnormalized weights [vocab], renormalized.

    Of the nucleus it leaves out tokens that are less than `min_p` times as probable as the first.
    """
    ids, kept_weights, num_kept = (
        nucleus(weights, limit, keeps_crossing=keeps_crossing) if limit < 1.0 else (None, weights, None)
    )
    if min_p:
        kept_weights, num_kept = np.where(kept_weights < min_p * kept_weights.max(), 0, kept_weights), None
    draw = draw_categorical(kept_weights, uniform, num_kept)
    return draw if ids is None else Draw(int(ids[draw.token_id]), draw.logprob, draw.kept)
