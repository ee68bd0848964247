"""The sampler's kernel for rows with `top_k`, `top_p`, a nucleus or `min_p`: exact kept sets without sorting.

The tokens that may be kept are gathered in the order of their ids, and a program finds the cutoffs among them. Where
they are too many, or hold less than the nucleus, the row is left to `whole_rows`. Cutoffs are found by bisection on
the bit patterns of scores, so that equal tokens stay together; of those on a nucleus' edge the first by id are kept.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from worker.engine.cuda.sampling.reduction import (
    NUM_STATISTICS,
    ROW_LOG_SUM,
    ROW_MAX,
    ROW_OVERFLOWS,
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
    load_scores_of,
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
    """The k-th largest of values, whose bits below `shift` are zero; -inf where fewer than k are finite."""
    largest = tl.max(values, 0)
    least = tl.min(tl.where(values > float("-inf"), values, largest), 0)
    has_all = tl.sum((values >= least).to(tl.int32), 0) >= k
    low = key_of(tl.where(has_all, least, float("-inf")), shift)
    high = key_of(tl.where(has_all, largest, float("-inf")), shift) + 1
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
def cut_of(source) -> tuple[Any, Any, Any, Any, Any]:
    """A row's temperature, `min_p`, `top_k` (0: none), limit of its nucleus with slack (1 or more: none) and its rule.

    By Transformers' rule the token that crosses the limit is kept.
    """
    of_numbers = source[5] + source[4] * NUM_NUMBERS
    temperature = tl.load(of_numbers + TEMPERATURE).to(tl.float32)
    min_p = tl.load(of_numbers + MIN_P).to(tl.float32)
    top_p = tl.load(of_numbers + TOP_P)
    limit = tl.minimum(top_p, tl.load(of_numbers + NUCLEUS_P))
    limit_factor = tl.where(top_p < 1.0, tl.maximum(limit - SLACK, 0.0), limit + SLACK)
    top_k = tl.load(source[6] + source[4] * NUM_INTEGERS + TOP_K).to(tl.int32)
    top_k = tl.where(top_k < source[3], tl.maximum(top_k, 0), 0)
    return temperature, min_p, top_k, tl.where(limit < 1.0, limit_factor, 1.0), top_p < 1.0


@triton.jit
def uniform_of(source) -> Any:
    """The row's uniform random number at its position."""
    of_integers = source[6] + source[4] * NUM_INTEGERS
    position = tl.load(source[7] + source[4])
    return uniform_number(tl.load(of_integers + SEED), tl.load(of_integers + SAMPLE_INDEX), position)


@triton.jit
def num_on_edge(limit_mass, mass_kept, num_kept, edge, keeps_crossing) -> Any:
    """The number of tokens of weight `edge` that a nucleus keeps beside those above it; it keeps at least one token."""
    fitting = (limit_mass - mass_kept) / tl.where(edge > 0.0, edge, 1.0).to(tl.float64)
    num_equal = tl.maximum(tl.minimum(fitting, 2147483000.0), 0.0).to(tl.int32)
    return num_equal + (keeps_crossing | (num_kept + num_equal == 0)).to(tl.int32)


@triton.jit
def _list_subblocks(
    listed, submax, num_subblocks, least_score, least_weight, max_score, temperature, SUBBLOCKS_PADDED: tl.constexpr
) -> Any:
    """Stores the subblocks that may hold candidates, in their order; returns how many."""
    places = tl.arange(0, SUBBLOCKS_PADDED)
    maxima = tl.load(submax + places, mask=places < num_subblocks, other=float("-inf"))
    is_listed = (maxima >= least_score) & (weight_of(maxima, max_score, temperature) >= least_weight)
    is_listed = is_listed & (maxima > float("-inf"))
    tl.store(listed + tl.cumsum(is_listed.to(tl.int32), 0) - 1, places, mask=is_listed)
    return tl.sum(is_listed.to(tl.int32), 0)


@triton.jit
def _gather(
    source, listed, num_listed, least_score, least_weight, max_score, temperature, candidate_scores, candidate_ids,
    BLOCK: tl.constexpr, CAPACITY: tl.constexpr,
) -> tuple[Any, Any]:  # fmt: skip
    """Stores the candidates up to CAPACITY; returns how many there are, and the sum of their weights."""
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0.0, tl.float64)
    for start in range(0, num_listed * SUBBLOCK, BLOCK):
        places = start + tl.arange(0, BLOCK)
        is_listed = places < num_listed * SUBBLOCK
        subblocks = tl.load(listed + places // SUBBLOCK, mask=is_listed, other=0)
        tokens = tl.where(is_listed, subblocks * SUBBLOCK + places % SUBBLOCK, source[3])
        _, scores = load_scores_of(source, tokens)
        weights = weight_of(scores, max_score, temperature)
        is_candidate = (scores >= least_score) & (weights >= least_weight) & (scores > float("-inf"))
        index = count + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
        is_stored = is_candidate & (index < CAPACITY)
        tl.store(candidate_scores + index, scores, mask=is_stored)
        tl.store(candidate_ids + index, tokens, mask=is_stored)
        count += tl.sum(is_candidate.to(tl.int32), 0)
        mass += tl.sum(tl.where(is_candidate, weights.to(tl.float64), 0.0), 0)
    return count, mass


@triton.jit
def _nucleus_edge(
    scores, weights, is_reached, limit_mass, keeps_crossing, max_score, temperature, shift
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A nucleus: its least weight above the edge, the weight on the edge, and the number of tokens kept of that weight.

    Bisection. Invariant: mass(scores of key >= low) > limit >= mass(scores of key >= high).
    """
    masses = tl.where(is_reached, weights.to(tl.float64), 0.0)
    least_kept = tl.full([], float("inf"), tl.float32)
    mass_kept = tl.full([], 0.0, tl.float64)
    num_kept = tl.full([], 0, tl.int32)
    num_low = tl.sum(is_reached.to(tl.int32), 0)
    low = key_of(tl.min(tl.where(is_reached, scores, max_score), 0), shift)
    high = key_of(max_score, shift) + 1
    while (low + 1 < high) & (num_kept + 1 < num_low):
        middle = middle_of(low, high)
        weight = weight_of(score_of(middle, shift), max_score, temperature)
        is_above = is_reached & (weights >= weight)
        count = tl.sum(is_above.to(tl.int32), 0)
        mass = tl.sum(tl.where(is_above, masses, 0.0), 0)
        is_low = mass > limit_mass
        low = tl.where(is_low, middle, low)
        num_low = tl.where(is_low, count, num_low)
        high = tl.where(is_low, high, middle)
        least_kept = tl.where(is_low, least_kept, weight)
        num_kept = tl.where(is_low, num_kept, count)
        mass_kept = tl.where(is_low, mass_kept, mass)
    edge = tl.max(tl.where(is_reached & (weights < least_kept), weights, 0.0), 0)
    return least_kept, edge, num_on_edge(limit_mass, mass_kept, num_kept, edge, keeps_crossing)


@triton.jit
def _draw_among(
    source, candidate_scores, candidate_ids, count, total, max_score, shift, SIZE: tl.constexpr
) -> tuple[Any, Any, Any]:  # fmt: skip
    """A token of the kept candidates, drawn; its logprob; and the number of kept ones."""
    temperature, min_p, top_k, limit_factor, keeps_crossing = cut_of(source)
    places = tl.arange(0, SIZE)
    scores = tl.load(candidate_scores + places, mask=places < count, other=float("-inf"))
    weights = weight_of(scores, max_score, temperature)
    is_reached = scores > float("-inf")
    if top_k > 0:
        is_reached = is_reached & (scores >= kth_largest(scores, top_k, shift))
        total = tl.sum(tl.where(is_reached, weights.to(tl.float64), 0.0), 0)
    is_kept = is_reached & (weights >= min_p)
    if limit_factor < 1.0:
        least_kept, edge, num_equal = _nucleus_edge(
            scores, weights, is_reached, limit_factor * total, keeps_crossing, max_score, temperature, shift
        )
        is_equal = is_reached & (weights == edge)
        is_first = is_equal & (tl.cumsum(is_equal.to(tl.int32), 0) <= num_equal)
        is_kept = is_kept & ((weights >= least_kept) | is_first)
    kept_weights = tl.where(is_kept, weights, 0.0).to(tl.float64)
    kept_total = tl.sum(kept_weights, 0)
    place = drawn_place(kept_weights, 0.0, uniform_of(source) * kept_total, SIZE)
    drawn = tl.sum(tl.where(places == place, kept_weights, 0.0), 0)
    kept = tl.sum((kept_weights > 0.0).to(tl.int32), 0)
    return tl.load(candidate_ids + place), tl.log(drawn) - tl.log(kept_total), kept


@triton.jit
def draw_from_candidates(
    packed, width, statistics, submax, num_blocks, listed, candidate_scores, candidate_ids, logits, row_stride, vocab,
    batch_indices, numbers, integers, num_generated, last_token_ids, edit_ids, edit_values, edit_ranges, history,
    allowed, BLOCK: tl.constexpr, CAPACITY: tl.constexpr, FEW: tl.constexpr, SUBBLOCKS_PADDED: tl.constexpr,
    SHIFT: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): the tokens of rows that draw from a part of the vocabulary; SHIFT low bits of logits are zero."""
    row = tl.program_id(0)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    log_sum = tl.load(statistics + row * NUM_STATISTICS + ROW_LOG_SUM)
    max_score = tl.load(statistics + row * NUM_STATISTICS + ROW_MAX).to(tl.float32)
    is_possible = (log_sum == log_sum) & (max_score > float("-inf"))
    overflows = tl.full([], 0.0, tl.float64)
    if is_cut(numbers, integers, batch_index, vocab) & is_possible:
        source = (logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated,
                  edit_ids, edit_values, edit_ranges, history, allowed)  # fmt: skip
        temperature, min_p, top_k, limit_factor, _ = cut_of(source)
        shift = tl.where(is_edited(integers, batch_index), 0, SHIFT)
        num_subblocks = num_blocks * (BLOCK // SUBBLOCK)
        submax += (row * 2 + 1).to(tl.int64) * num_subblocks
        listed += row.to(tl.int64) * num_subblocks
        candidate_scores += row.to(tl.int64) * CAPACITY
        candidate_ids += row.to(tl.int64) * CAPACITY
        total = tl.load(statistics + row * NUM_STATISTICS + ROW_TOTAL)
        least_score = tl.full([], float("-inf"), tl.float32)
        least_weight = min_p
        if top_k > 0:
            least_score = bound_of_top_k(submax, top_k, num_subblocks, shift, SUBBLOCKS_PADDED)
            least_weight = min_p * 0.0
        elif limit_factor < 1.0:
            least_weight = (total * MIN_PROBABILITY).to(tl.float32)
        num_listed = _list_subblocks(
            listed, submax, num_subblocks, least_score, least_weight, max_score, temperature, SUBBLOCKS_PADDED
        )
        tl.debug_barrier()
        count = num_listed
        mass = total * 0.0
        if num_listed <= CAPACITY:  # each has a candidate at least
            count, mass = _gather(
                source, listed, num_listed, least_score, least_weight, max_score, temperature, candidate_scores,
                candidate_ids, BLOCK, CAPACITY,
            )  # fmt: skip
        tl.debug_barrier()
        fits = (count <= CAPACITY) & ((top_k > 0) | (limit_factor >= 1.0) | (mass > limit_factor * total))
        overflows = tl.where(fits, 0.0, 1.0).to(tl.float64)
        if fits:
            if count <= FEW:
                token, logprob, kept = _draw_among(
                    source, candidate_scores, candidate_ids, count, total, max_score, shift, FEW
                )
            else:
                token, logprob, kept = _draw_among(
                    source, candidate_scores, candidate_ids, count, total, max_score, shift, CAPACITY
                )
            write_choice(source, packed, width, token, logprob, kept, statistics, last_token_ids)
    tl.store(statistics + row * NUM_STATISTICS + ROW_OVERFLOWS, overflows)
