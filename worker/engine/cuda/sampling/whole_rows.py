"""The sampler's kernel for rows whose candidates do not fit their room: cutoffs by bisection over the whole row.

Each pass reads the row once. A thread adds up its own tokens, and a pass adds the threads once at its end.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from worker.engine.cuda.sampling.cuts import cut_of, num_on_edge, uniform_of
from worker.engine.cuda.sampling.reduction import (
    NUM_STATISTICS,
    ROW_MAX,
    ROW_OVERFLOWS,
    ROW_TOTAL,
    drawn_place,
    write_choice,
)
from worker.engine.cuda.sampling.scores import is_edited, key_of, load_scores, middle_of, score_of, weight_of


@triton.jit
def _reached(source, least_score, least_weight, max_score, temperature, BLOCK: tl.constexpr) -> tuple[Any, Any]:
    """The number of scores that reach a score and a weight, and the sum of their weights."""
    counts = tl.zeros([BLOCK], tl.int32)
    masses = tl.zeros([BLOCK], tl.float64)
    for start in range(0, source[3], BLOCK):
        _, scores = load_scores(source, start, BLOCK)
        weights = weight_of(scores, max_score, temperature)
        is_reached = (scores >= least_score) & (weights >= least_weight) & (scores > float("-inf"))
        counts += is_reached.to(tl.int32)
        masses += tl.where(is_reached, weights, 0.0).to(tl.float64)
    return tl.sum(counts, 0), tl.sum(masses, 0)


@triton.jit
def _top_k_cutoff(source, k, max_score, temperature, shift, BLOCK: tl.constexpr) -> Any:
    """The k-th largest score."""
    low = key_of(tl.full([], float("-inf"), tl.float32), shift)
    high = key_of(max_score, shift) + 1
    while low + 1 < high:
        middle = middle_of(low, high)
        count, _ = _reached(source, score_of(middle, shift), 0.0, max_score, temperature, BLOCK)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle)
    return score_of(low, shift)


@triton.jit
def _key_below_the_edge(source, limit_factor, total, max_score, temperature, shift) -> Any:
    """A key so low that the scores below it cannot hold what the limit leaves out, though each token had its weight."""
    least = (0.5 * (1.0 - limit_factor) * total / source[3]).to(tl.float32)
    score = max_score + temperature * tl.log(tl.maximum(least, 1e-30))
    lowest = key_of(tl.full([], float("-inf"), tl.float32), shift)
    return tl.maximum(key_of(score, shift) - 1, lowest)


@triton.jit
def _nucleus_edge(
    source, least_score, limit_factor, total, keeps_crossing, max_score, temperature, shift, BLOCK: tl.constexpr
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A nucleus: its least weight above the edge, the weight on the edge, and the number of tokens kept of that weight.

    Bisection. Invariant: mass(scores of key >= low) > limit >= mass(scores of key >= high).
    """
    limit_mass = limit_factor * total
    least_kept = tl.full([], float("inf"), tl.float32)
    mass_kept = tl.full([], 0.0, tl.float64)
    num_kept = tl.full([], 0, tl.int32)
    num_low = source[3]
    low = _key_below_the_edge(source, limit_factor, total, max_score, temperature, shift)
    high = key_of(max_score, shift) + 1
    while (low + 1 < high) & (num_kept + 1 < num_low):
        middle = middle_of(low, high)
        weight = weight_of(score_of(middle, shift), max_score, temperature)
        count, mass = _reached(source, least_score, weight, max_score, temperature, BLOCK)
        is_low = mass > limit_mass
        low = tl.where(is_low, middle, low)
        num_low = tl.where(is_low, count, num_low)
        high = tl.where(is_low, high, middle)
        least_kept = tl.where(is_low, least_kept, weight)
        num_kept = tl.where(is_low, num_kept, count)
        mass_kept = tl.where(is_low, mass_kept, mass)
    edges = tl.zeros([BLOCK], tl.float32)
    for start in range(0, source[3], BLOCK):
        _, scores = load_scores(source, start, BLOCK)
        weights = weight_of(scores, max_score, temperature)
        edges = tl.maximum(edges, tl.where((scores >= least_score) & (weights < least_kept), weights, 0.0))
    edge = tl.max(edges, 0)
    return least_kept, edge, num_on_edge(limit_mass, mass_kept, num_kept, edge, keeps_crossing)


@triton.jit
def _load_kept(
    source, start, least_score, min_p, least_kept, edge, max_score, temperature, BLOCK: tl.constexpr
) -> tuple[Any, Any]:
    """A chunk's weights above the edge, zeros for others; and which tokens are on it."""
    _, scores = load_scores(source, start, BLOCK)
    weights = weight_of(scores, max_score, temperature)
    is_allowed = (scores >= least_score) & (weights >= min_p)
    is_equal = is_allowed & (weights == edge) & (weights > 0.0)
    return tl.where(is_allowed & (weights >= least_kept), weights, 0.0), is_equal


@triton.jit
def _draw_place(
    source, least_score, min_p, edges, uniform, max_score, temperature, BLOCK: tl.constexpr
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A kept token, drawn; its logprob; and the number of kept ones."""
    least_kept, edge, num_equal = edges
    masses = tl.zeros([BLOCK], tl.float64)
    counts = tl.zeros([BLOCK], tl.int32)
    equals = tl.zeros([BLOCK], tl.int32)
    for start in range(0, source[3], BLOCK):
        weights, is_equal = _load_kept(
            source, start, least_score, min_p, least_kept, edge, max_score, temperature, BLOCK
        )
        masses += weights.to(tl.float64)
        counts += (weights > 0.0).to(tl.int32)
        equals += is_equal.to(tl.int32)
    num_equal = tl.minimum(num_equal, tl.sum(equals, 0))
    total = tl.sum(masses, 0) + num_equal * edge.to(tl.float64)
    target = uniform * total
    chunk = tl.full([], 0, tl.int32)
    before = tl.full([], 0.0, tl.float64)
    equals_before = tl.full([], 0, tl.int32)
    mass_passed = before
    equals_passed = equals_before
    for start in range(0, source[3], BLOCK):
        weights, is_equal = _load_kept(
            source, start, least_score, min_p, least_kept, edge, max_score, temperature, BLOCK
        )
        num_here = tl.minimum(tl.sum(is_equal.to(tl.int32), 0), num_equal - equals_passed)
        mass = tl.sum(weights.to(tl.float64), 0) + num_here * edge.to(tl.float64)
        # The last such chunk: the target is in it, or rounding points beyond.
        is_here = (mass_passed <= target) & (mass > 0.0)
        chunk = tl.where(is_here, start, chunk)
        before = tl.where(is_here, mass_passed, before)
        equals_before = tl.where(is_here, equals_passed, equals_before)
        mass_passed += mass
        equals_passed += num_here
    weights, is_equal = _load_kept(source, chunk, least_score, min_p, least_kept, edge, max_score, temperature, BLOCK)
    is_first = is_equal & (equals_before + tl.cumsum(is_equal.to(tl.int32), 0) <= num_equal)
    kept_weights = tl.where(is_first, edge, weights).to(tl.float64)
    place = drawn_place(kept_weights, before, target, BLOCK)
    drawn = tl.sum(tl.where(tl.arange(0, BLOCK) == place, kept_weights, 0.0), 0)
    return chunk + place, tl.log(drawn) - tl.log(total), tl.sum(counts, 0) + num_equal


@triton.jit
def draw_from_whole_rows(
    packed, width, statistics, logits, row_stride, vocab, batch_indices, numbers, integers, num_generated,
    last_token_ids, edit_ids, edit_values, edit_ranges, history, allowed, BLOCK: tl.constexpr, SHIFT: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): the tokens of rows that `draw_from_candidates` has left."""
    row = tl.program_id(0)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    if tl.load(statistics + row * NUM_STATISTICS + ROW_OVERFLOWS) > 0.0:
        source = (logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated,
                  edit_ids, edit_values, edit_ranges, history, allowed)  # fmt: skip
        temperature, min_p, top_k, limit_factor, keeps_crossing = cut_of(source)
        shift = tl.where(is_edited(integers, batch_index), 0, SHIFT)
        max_score = tl.load(statistics + row * NUM_STATISTICS + ROW_MAX).to(tl.float32)
        total = tl.load(statistics + row * NUM_STATISTICS + ROW_TOTAL)
        least_score = tl.full([], float("-inf"), tl.float32)
        if top_k > 0:
            least_score = _top_k_cutoff(source, top_k, max_score, temperature, shift, BLOCK)
            _, total = _reached(source, least_score, 0.0, max_score, temperature, BLOCK)
        least_kept = tl.full([], 0.0, tl.float32)
        edge = tl.full([], -1.0, tl.float32)
        num_equal = tl.full([], 0, tl.int32)
        if limit_factor < 1.0:
            least_kept, edge, num_equal = _nucleus_edge(
                source, least_score, limit_factor, total, keeps_crossing, max_score, temperature, shift, BLOCK
            )
        token, logprob, kept = _draw_place(
            source, least_score, min_p, (least_kept, edge, num_equal), uniform_of(source), max_score, temperature,
            BLOCK,
        )  # fmt: skip
        write_choice(source, packed, width, token, logprob, kept, statistics, last_token_ids)
