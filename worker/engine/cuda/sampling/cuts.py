"""The sampler's kernel for rows with `top_k`, `top_p`, a nucleus or `min_p`: exact kept sets without sorting.

The tokens that may be kept are gathered in the order of their ids, few of them as a rule; where they are too many, or
hold less than the nucleus, the whole row takes their place. Cutoffs are found by bisection on the bit patterns of
scores, so that equal tokens stay together; of those on a nucleus' edge the first by id are kept.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from worker.engine.cuda.sampling.reduction import (
    MAX,
    NUM_PARTIAL,
    NUM_STATISTICS,
    ROW_LOG_SUM,
    ROW_MAX,
    ROW_TOTAL,
    SUBBLOCK,
    drawn_place,
    is_cut,
    write_choice,
)
from worker.engine.cuda.sampling.scores import (
    MIN_P,
    NUCLEUS_P,
    NUM_INTEGERS,
    NUM_NUMBERS,
    SAMPLE_INDEX,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    is_edited,
    key_of,
    load_scores,
    middle_of,
    score_of,
    uniform_number,
    weight_of,
)
from worker.engine.sampling import nucleus

SLACK = tl.constexpr(nucleus.SLACK)

#: Tokens that are less probable are looked at only if the others do not hold the nucleus.
MIN_PROBABILITY = tl.constexpr(nucleus.MIN_PROBABILITY)


@triton.jit
def kth_largest(values, k, shift) -> Any:
    """The k-th largest of values, whose bits below `shift` are zero; there must be k of them."""
    low = key_of(tl.min(values, 0), shift)
    high = key_of(tl.max(values, 0), shift) + 1
    while low + 1 < high:
        middle = middle_of(low, high)
        is_low = tl.sum((values >= score_of(middle, shift)).to(tl.int32), 0) >= k
        low = tl.where(is_low, middle, low)
        high = tl.where(is_low, high, middle)
    return score_of(low, shift)


@triton.jit
def bound_of_top_k(submax, k, num_subblocks, shift, SUBBLOCKS_PADDED: tl.constexpr) -> Any:
    """A score that at least k tokens reach: the k-th largest of the subblocks' maxima; -inf where these are fewer."""
    places = tl.arange(0, SUBBLOCKS_PADDED)
    maxima = tl.load(submax + places, mask=places < num_subblocks, other=float("-inf"))
    bound = tl.min(maxima, 0)
    if k <= num_subblocks:
        bound = kth_largest(maxima, k, shift)
    else:
        bound = tl.full([], float("-inf"), tl.float32)
    return bound


@triton.jit
def _load_chunk(source, gathered, start, BLOCK: tl.constexpr) -> Any:
    """Scores of candidates, or of the row where these are not gathered; -inf after the last."""
    is_gathered, candidate_scores, count = gathered
    if is_gathered:
        places = start + tl.arange(0, BLOCK)
        scores = tl.load(candidate_scores + places, mask=places < count, other=float("-inf"))
    else:
        _, scores = load_scores(source, start, BLOCK)
    return scores


@triton.jit
def _gather(
    source, least_score, least_weight, max_score, temperature, block_maxima, num_blocks,
    candidate_scores, candidate_ids, BLOCK: tl.constexpr, CAPACITY: tl.constexpr,
) -> tuple[Any, Any]:  # fmt: skip
    """Stores the candidates up to CAPACITY; returns how many there are, and the sum of their weights."""
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0.0, tl.float64)
    for block in range(num_blocks):
        block_max = tl.load(block_maxima + block)
        if (block_max >= least_score) & (weight_of(block_max, max_score, temperature) >= least_weight):
            _, scores = load_scores(source, block * BLOCK, BLOCK)
            weights = weight_of(scores, max_score, temperature)
            tokens = block * BLOCK + tl.arange(0, BLOCK)
            is_candidate = (scores >= least_score) & (weights >= least_weight) & (tokens < source[3])
            places = count + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
            is_stored = is_candidate & (places < CAPACITY)
            tl.store(candidate_scores + places, scores, mask=is_stored)
            tl.store(candidate_ids + places, tokens, mask=is_stored)
            count += tl.sum(is_candidate.to(tl.int32), 0)
            mass += tl.sum(tl.where(is_candidate, weights.to(tl.float64), 0.0), 0)
    return count, mass


@triton.jit
def _reached(source, gathered, least_score, least_weight, max_score, temperature, BLOCK: tl.constexpr) -> Any:
    """The number of scores that reach a score and a weight, and the sum of their weights."""
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0.0, tl.float64)
    for start in range(0, gathered[2], BLOCK):
        scores = _load_chunk(source, gathered, start, BLOCK)
        weights = weight_of(scores, max_score, temperature)
        is_reached = (scores >= least_score) & (weights >= least_weight) & (scores > float("-inf"))
        count += tl.sum(is_reached.to(tl.int32), 0)
        mass += tl.sum(tl.where(is_reached, weights.to(tl.float64), 0.0), 0)
    return count, mass


@triton.jit
def _top_k_cutoff(source, gathered, k, bound, max_score, temperature, shift, BLOCK: tl.constexpr) -> Any:
    """The k-th largest score; `bound` is one that k scores reach."""
    low = key_of(bound, shift)
    high = key_of(max_score, shift) + 1
    while low + 1 < high:
        middle = middle_of(low, high)
        count, _ = _reached(source, gathered, score_of(middle, shift), 0.0, max_score, temperature, BLOCK)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle)
    return score_of(low, shift)


@triton.jit
def _nucleus_edge(
    source, gathered, least_score, limit_mass, keeps_crossing, max_score, temperature, shift, BLOCK: tl.constexpr
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A nucleus: its least weight above the edge, the weight on the edge, and the number of tokens kept of that weight.

    Bisection. Invariant: mass(scores of key >= low) > limit >= mass(scores of key >= high).
    """
    least_kept = tl.full([], float("inf"), tl.float32)
    mass_kept = tl.full([], 0.0, tl.float64)
    num_kept = tl.full([], 0, tl.int32)
    num_low = gathered[2]
    low = key_of(tl.full([], float("-inf"), tl.float32), shift)
    high = key_of(max_score, shift) + 1
    while (low + 1 < high) & (num_kept + 1 < num_low):
        middle = middle_of(low, high)
        weight = weight_of(score_of(middle, shift), max_score, temperature)
        count, mass = _reached(source, gathered, least_score, weight, max_score, temperature, BLOCK)
        is_low = mass > limit_mass
        low = tl.where(is_low, middle, low)
        num_low = tl.where(is_low, count, num_low)
        high = tl.where(is_low, high, middle)
        least_kept = tl.where(is_low, least_kept, weight)
        num_kept = tl.where(is_low, num_kept, count)
        mass_kept = tl.where(is_low, mass_kept, mass)
    edge = tl.full([], 0.0, tl.float32)
    for start in range(0, gathered[2], BLOCK):
        scores = _load_chunk(source, gathered, start, BLOCK)
        weights = weight_of(scores, max_score, temperature)
        is_below = (scores >= least_score) & (weights < least_kept)
        edge = tl.maximum(edge, tl.max(tl.where(is_below, weights, 0.0), 0))
    fitting = (limit_mass - mass_kept) / tl.where(edge > 0.0, edge, 1.0).to(tl.float64)
    num_equal = tl.maximum(tl.minimum(fitting, 2147483000.0), 0.0).to(tl.int32)
    num_equal += (keeps_crossing | (num_kept + num_equal == 0)).to(tl.int32)
    return least_kept, edge, num_equal


@triton.jit
def _kept_weights(scores, before, least_score, min_p, edges, max_score, temperature) -> tuple[Any, Any]:
    """Weights with zeros for tokens that are left out; how many on the nucleus' edge there are up to this chunk."""
    least_kept, edge, num_equal = edges
    weights = weight_of(scores, max_score, temperature)
    is_equal = (scores >= least_score) & (weights == edge)
    is_first = is_equal & (before + tl.cumsum(is_equal.to(tl.int32), 0) <= num_equal)
    is_kept = (scores >= least_score) & ((weights >= least_kept) | is_first) & (weights >= min_p)
    return tl.where(is_kept, weights, 0.0), before + tl.sum(is_equal.to(tl.int32), 0)


@triton.jit
def _draw_place(
    source, gathered, least_score, min_p, edges, uniform, max_score, temperature, BLOCK: tl.constexpr
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A place among the gathered scores, drawn; the logprob of its token; and the number of kept ones."""
    total = tl.full([], 0.0, tl.float64)
    kept = tl.full([], 0, tl.int32)
    num_equal = tl.full([], 0, tl.int32)
    for start in range(0, gathered[2], BLOCK):
        scores = _load_chunk(source, gathered, start, BLOCK)
        weights, num_equal = _kept_weights(scores, num_equal, least_score, min_p, edges, max_score, temperature)
        total += tl.sum(weights.to(tl.float64), 0)
        kept += tl.sum((weights > 0.0).to(tl.int32), 0)
    target = uniform * total
    before = tl.full([], 0.0, tl.float64)
    place = tl.full([], 0, tl.int32)
    drawn = tl.full([], 0.0, tl.float32)
    num_equal = tl.full([], 0, tl.int32)
    for start in range(0, gathered[2], BLOCK):
        scores = _load_chunk(source, gathered, start, BLOCK)
        weights, num_equal = _kept_weights(scores, num_equal, least_score, min_p, edges, max_score, temperature)
        mass = tl.sum(weights.to(tl.float64), 0)
        if (before <= target) & (mass > 0.0):  # the last such chunk: the target is in it, or rounding points beyond
            in_chunk = drawn_place(weights.to(tl.float64), before, target, BLOCK)
            place = start + in_chunk
            drawn = tl.sum(tl.where(tl.arange(0, BLOCK) == in_chunk, weights, 0.0), 0)
        before += mass
    return place, tl.log(drawn.to(tl.float64)) - tl.log(total), kept


@triton.jit
def draw_from_kept(
    packed, width, statistics, partial, submax, num_blocks, candidate_scores, candidate_ids, logits, row_stride, vocab,
    batch_indices, numbers, integers, num_generated, last_token_ids, edit_ids, edit_values, edit_ranges, history,
    allowed, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, SUBBLOCKS_PADDED: tl.constexpr, SHIFT: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): the tokens of rows that draw from a part of the vocabulary; SHIFT low bits of logits are zero."""
    row = tl.program_id(0)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    log_sum = tl.load(statistics + row * NUM_STATISTICS + ROW_LOG_SUM)
    max_score = tl.load(statistics + row * NUM_STATISTICS + ROW_MAX).to(tl.float32)
    is_possible = (log_sum == log_sum) & (max_score > float("-inf"))
    if is_cut(numbers, integers, batch_index, vocab) & is_possible:
        source = (logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated,
                  edit_ids, edit_values, edit_ranges, history, allowed)  # fmt: skip
        of_partial = partial + (row * NUM_PARTIAL + MAX).to(tl.int64) * num_blocks
        of_submax = submax + (row * 2 + 1).to(tl.int64) * num_blocks * (BLOCK // SUBBLOCK)
        total = tl.load(statistics + row * NUM_STATISTICS + ROW_TOTAL)
        place, logprob, kept, is_gathered = _draw(
            source, max_score, total, of_partial, of_submax, num_blocks,
            candidate_scores + row.to(tl.int64) * CAPACITY, candidate_ids + row.to(tl.int64) * CAPACITY,
            BLOCK, CAPACITY, SUBBLOCKS_PADDED, SHIFT,
        )  # fmt: skip
        token = place
        if is_gathered:
            token = tl.load(candidate_ids + row.to(tl.int64) * CAPACITY + place)
        write_choice(source, packed, width, token, logprob, kept, statistics, last_token_ids)


@triton.jit
def _draw(
    source, max_score, total, block_maxima, submax, num_blocks, candidate_scores, candidate_ids,
    BLOCK: tl.constexpr, CAPACITY: tl.constexpr, SUBBLOCKS_PADDED: tl.constexpr, SHIFT: tl.constexpr,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """`_draw_place` of a row, and whether the place is among the gathered candidates."""
    vocab, batch_index, numbers, integers = source[3], source[4], source[5], source[6]
    of_numbers = numbers + batch_index * NUM_NUMBERS
    of_integers = integers + batch_index * NUM_INTEGERS
    temperature = tl.load(of_numbers + TEMPERATURE).to(tl.float32)
    min_p = tl.load(of_numbers + MIN_P).to(tl.float32)
    top_p = tl.load(of_numbers + TOP_P)
    limit = tl.minimum(top_p, tl.load(of_numbers + NUCLEUS_P))
    limit_factor = tl.where(top_p < 1.0, limit - SLACK, limit + SLACK)
    top_k = tl.load(of_integers + TOP_K).to(tl.int32)
    has_top_k = (top_k > 0) & (top_k < vocab)
    shift = tl.where(is_edited(integers, batch_index), 0, SHIFT)
    least_score = tl.full([], float("-inf"), tl.float32)
    least_weight = min_p
    if has_top_k:
        least_score = bound_of_top_k(submax, top_k, num_blocks * (BLOCK // SUBBLOCK), shift, SUBBLOCKS_PADDED)
        least_weight = min_p * 0.0
    elif limit < 1.0:
        least_weight = (total * MIN_PROBABILITY).to(tl.float32)
    count, mass = _gather(
        source, least_score, least_weight, max_score, temperature, block_maxima, num_blocks, candidate_scores,
        candidate_ids, BLOCK, CAPACITY,
    )  # fmt: skip
    tl.debug_barrier()
    is_gathered = (count <= CAPACITY) & (has_top_k | (limit >= 1.0) | (mass > limit_factor * total))
    gathered = (is_gathered, candidate_scores, tl.where(is_gathered, count, vocab))
    if has_top_k:
        least_score = _top_k_cutoff(source, gathered, top_k, least_score, max_score, temperature, shift, BLOCK)
        _, total = _reached(source, gathered, least_score, 0.0, max_score, temperature, BLOCK)
    least_kept = tl.full([], 0.0, tl.float32)
    edge = tl.full([], -1.0, tl.float32)
    num_equal = tl.full([], 0, tl.int32)
    if (limit < 1.0) & (limit_factor < 1.0):
        least_kept, edge, num_equal = _nucleus_edge(
            source, gathered, least_score, limit_factor * total, top_p < 1.0, max_score, temperature, shift, BLOCK
        )
    uniform = uniform_number(
        tl.load(of_integers + SEED), tl.load(of_integers + SAMPLE_INDEX), tl.load(source[7] + batch_index)
    )
    place, logprob, kept = _draw_place(
        source, gathered, least_score, min_p, (least_kept, edge, num_equal), uniform, max_score, temperature, BLOCK
    )
    return place, logprob, kept, is_gathered
