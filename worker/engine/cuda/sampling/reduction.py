"""The sampler's first two kernels: `reduce_blocks` reads logits once, `sample_plain_rows` finds most rows' tokens.

A row is reduced in blocks of fixed length, and its blocks are added by one program in one order: a row's numbers are
the same in any batch. Sums of blocks are fp32, what is added up of them fp64.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from worker.engine.cuda.sampling import output
from worker.engine.cuda.sampling.scores import (
    IS_PENALIZED,
    MIN_P,
    NUCLEUS_P,
    NUM_ALTERNATIVES,
    NUM_INTEGERS,
    NUM_NUMBERS,
    SAMPLE_INDEX,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    WANTS_TRACE,
    load_scores,
    uniform_number,
    weight_of,
)

#: Fields of `partial` [rows, fields, blocks].
RAW_MAX, RAW_SUM, RAW_WEIGHTED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
MAX, MIN, SUM, ARGMAX = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
NUM_PARTIAL = tl.constexpr(7)

#: Fields of `statistics` [rows, fields].
ROW_RAW_MAX, ROW_LOG_SUM, ROW_MAX, ROW_TOTAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
ROW_OVERFLOWS = tl.constexpr(4)  # 1 where a cut row's candidates do not fit their room
NUM_STATISTICS = tl.constexpr(5)

#: Tokens whose largest score `submax` keeps.
SUBBLOCK = tl.constexpr(32)

TOKEN_ID, LOGPROB = tl.constexpr(int(output.Column.TOKEN_ID)), tl.constexpr(int(output.Column.LOGPROB))
SAMPLING_LOGPROB = tl.constexpr(int(output.Column.SAMPLING_LOGPROB))
ENTROPY, RANK = tl.constexpr(int(output.Column.ENTROPY)), tl.constexpr(int(output.Column.RANK))
KEPT, SAW_NAN = tl.constexpr(int(output.Column.KEPT)), tl.constexpr(int(output.Column.SAW_NAN))


@triton.jit
def is_cut(numbers, integers, batch_index, vocab) -> Any:
    """Whether a row draws, and not from all tokens."""
    of_row = numbers + batch_index * NUM_NUMBERS
    top_k = tl.load(integers + batch_index * NUM_INTEGERS + TOP_K)
    has_limit = (tl.load(of_row + TOP_P) < 1.0) | (tl.load(of_row + NUCLEUS_P) < 1.0) | (tl.load(of_row + MIN_P) > 0.0)
    return (tl.load(of_row + TEMPERATURE) > 0.0) & (has_limit | ((top_k > 0) & (top_k < vocab)))


@triton.jit
def _finite_or_zero(number) -> Any:
    return tl.where(number == float("-inf"), 0.0, number)


@triton.jit
def reduce_blocks(
    partial, submax, logits, row_stride, vocab, batch_indices, numbers, integers, num_generated,
    edit_ids, edit_values, edit_ranges, history, allowed, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows, blocks): maxima and sums of a block's logits and scores; `submax` [rows, 2, subblocks] of both."""
    row = tl.program_id(0)
    block = tl.program_id(1)
    num_blocks = tl.num_programs(1)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    source = (logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated,
              edit_ids, edit_values, edit_ranges, history, allowed)  # fmt: skip
    tokens = block * BLOCK + tl.arange(0, BLOCK)
    raw, scores = load_scores(source, block * BLOCK, BLOCK)
    of_block = partial + (row * NUM_PARTIAL).to(tl.int64) * num_blocks + block
    of_row = integers + batch_index * NUM_INTEGERS
    raw_max = tl.max(raw, 0)
    exponents = raw - _finite_or_zero(raw_max)
    exp_logits = tl.exp(exponents)
    tl.store(of_block + RAW_MAX * num_blocks, raw_max)
    tl.store(of_block + RAW_SUM * num_blocks, tl.sum(exp_logits, 0))
    if tl.load(of_row + WANTS_TRACE) > 0:
        weighted = tl.where(exp_logits > 0.0, exp_logits * exponents, 0.0)
        tl.store(of_block + RAW_WEIGHTED * num_blocks, tl.sum(weighted, 0))
    max_score, first = tl.max(scores, 0, return_indices=True)
    tl.store(of_block + MAX * num_blocks, max_score)
    tl.store(of_block + ARGMAX * num_blocks, (block * BLOCK + first).to(tl.int32).to(tl.float32, bitcast=True))
    num_subblocks: tl.constexpr = BLOCK // SUBBLOCK
    of_submax = submax + (row * 2).to(tl.int64) * num_blocks * num_subblocks
    of_submax += block * num_subblocks + tl.arange(0, num_subblocks)
    if tl.load(of_row + NUM_ALTERNATIVES) > 0:
        tl.store(of_submax, tl.max(tl.reshape(raw, [num_subblocks, SUBBLOCK]), 1))
    temperature = tl.load(numbers + batch_index * NUM_NUMBERS + TEMPERATURE).to(tl.float32)
    if temperature > 0.0:
        weights = weight_of(scores, _finite_or_zero(max_score), temperature)
        tl.store(of_block + SUM * num_blocks, tl.sum(weights, 0))
        least = tl.min(tl.where(tokens < vocab, scores, float("inf")), 0)
        tl.store(of_block + MIN * num_blocks, least)
        if is_cut(numbers, integers, batch_index, vocab):
            of_scores = of_submax + num_blocks * num_subblocks
            tl.store(of_scores, tl.max(tl.reshape(scores, [num_subblocks, SUBBLOCK]), 1))


@triton.jit
def write_choice(source, packed, width, token, sampling_logprob, kept, statistics, last_token_ids) -> None:
    """Writes a row's token into its output, and into the table."""
    logits, row, row_stride, vocab, batch_index, _, integers, num_generated = source[:8]
    of_row = packed + row.to(tl.int64) * width
    raw = tl.load(logits + row.to(tl.int64) * row_stride + token).to(tl.float64)
    logprob = raw - tl.load(statistics + row * NUM_STATISTICS + ROW_RAW_MAX)
    logprob = (logprob - tl.load(statistics + row * NUM_STATISTICS + ROW_LOG_SUM)).to(tl.float32)
    tl.store(of_row + TOKEN_ID, token.to(tl.int32))
    tl.store(of_row + LOGPROB, logprob.to(tl.int32, bitcast=True))
    tl.store(of_row + SAMPLING_LOGPROB, sampling_logprob.to(tl.float32).to(tl.int32, bitcast=True))
    tl.store(of_row + KEPT, kept)
    tl.store(last_token_ids + batch_index, token.to(tl.int64))
    tl.store(num_generated + batch_index, tl.load(num_generated + batch_index) + 1)
    if tl.load(integers + batch_index * NUM_INTEGERS + IS_PENALIZED) > 0:
        seen = source[11] + batch_index * vocab + token
        tl.store(seen, tl.load(seen) + 1)


@triton.jit
def _row_statistics(of_row, statistics, packed, row, width, num_blocks, blocks, wants_trace) -> Any:
    """Writes what a row's logits give by themselves; returns whether one of them is NaN or infinite."""
    is_block = blocks < num_blocks
    raw_maxima = tl.load(of_row + RAW_MAX * num_blocks + blocks, mask=is_block, other=float("-inf"))
    raw_sums = tl.load(of_row + RAW_SUM * num_blocks + blocks, mask=is_block, other=0.0)
    raw_max = tl.max(raw_maxima, 0)
    scaled = raw_sums.to(tl.float64) * tl.exp(raw_maxima - _finite_or_zero(raw_max)).to(tl.float64)
    total = tl.sum(scaled, 0)
    saw_nan = (total != total) | (raw_max == float("-inf")) | (raw_max == float("inf"))
    log_sum = tl.log(total)
    tl.store(statistics + row * NUM_STATISTICS + ROW_RAW_MAX, raw_max.to(tl.float64))
    tl.store(statistics + row * NUM_STATISTICS + ROW_LOG_SUM, tl.where(saw_nan, float("nan"), log_sum))
    entropy = log_sum * 0.0
    if wants_trace:
        weighted = tl.load(of_row + RAW_WEIGHTED * num_blocks + blocks, mask=is_block, other=0.0)
        shift = tl.where(raw_sums > 0.0, raw_maxima - raw_max, 0.0)
        inner = weighted.to(tl.float64) + raw_sums.to(tl.float64) * shift.to(tl.float64)
        inner = inner * tl.exp(raw_maxima - _finite_or_zero(raw_max)).to(tl.float64)
        entropy = log_sum - tl.sum(inner, 0) / total
    of_packed = packed + row.to(tl.int64) * width
    tl.store(of_packed + ENTROPY, tl.where(saw_nan, float("nan"), entropy).to(tl.float32).to(tl.int32, bitcast=True))
    tl.store(of_packed + RANK, wants_trace.to(tl.int32))
    tl.store(of_packed + SAW_NAN, saw_nan.to(tl.int32))
    return saw_nan


@triton.jit
def sample_plain_rows(
    packed, width, statistics, partial, num_blocks, logits, row_stride, vocab, batch_indices, numbers, integers,
    num_generated, last_token_ids, edit_ids, edit_values, edit_ranges, history, allowed,
    BLOCK: tl.constexpr, NUM_BLOCKS_PADDED: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): statistics of each row; the tokens of rows that are greedy or draw from all tokens."""
    row = tl.program_id(0)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    source = (logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated,
              edit_ids, edit_values, edit_ranges, history, allowed)  # fmt: skip
    blocks = tl.arange(0, NUM_BLOCKS_PADDED)
    is_block = blocks < num_blocks
    of_row = partial + (row * NUM_PARTIAL).to(tl.int64) * num_blocks
    of_integers = integers + batch_index * NUM_INTEGERS
    temperature = tl.load(numbers + batch_index * NUM_NUMBERS + TEMPERATURE).to(tl.float32)
    saw_nan = _row_statistics(
        of_row, statistics, packed, row, width, num_blocks, blocks, tl.load(of_integers + WANTS_TRACE) > 0
    )
    maxima = tl.load(of_row + MAX * num_blocks + blocks, mask=is_block, other=float("-inf"))
    max_score, block_of_max = tl.max(maxima, 0, return_indices=True)
    is_hopeless = saw_nan | (max_score == float("-inf"))
    tl.store(statistics + row * NUM_STATISTICS + ROW_MAX, max_score.to(tl.float64))
    token = tl.load(of_row + ARGMAX * num_blocks + block_of_max).to(tl.int32, bitcast=True)
    kept = token * 0 + 1
    sampling_logprob = tl.where(is_hopeless, float("nan"), 0.0).to(tl.float64)
    draws_from_all = (temperature > 0.0) & (is_hopeless == 0)
    if draws_from_all:
        sums = tl.load(of_row + SUM * num_blocks + blocks, mask=is_block, other=0.0)
        masses = sums.to(tl.float64) * weight_of(maxima, max_score, temperature).to(tl.float64)
        total = tl.sum(masses, 0)
        tl.store(statistics + row * NUM_STATISTICS + ROW_TOTAL, total)
        draws_from_all = is_cut(numbers, integers, batch_index, vocab) == 0
        if draws_from_all:
            position = tl.load(num_generated + batch_index)
            target = total * uniform_number(tl.load(of_integers + SEED), tl.load(of_integers + SAMPLE_INDEX), position)
            last = tl.max(tl.where(masses > 0.0, blocks, 0), 0)
            block = tl.minimum(tl.sum((is_block & (tl.cumsum(masses, 0) <= target)).to(tl.int32), 0), last)
            before = tl.sum(tl.where(blocks < block, masses, 0.0), 0)
            _, scores = load_scores(source, block * BLOCK, BLOCK)
            weights = weight_of(scores, max_score, temperature)
            token = block * BLOCK + drawn_place(weights.to(tl.float64), before, target, BLOCK)
            drawn = tl.sum(tl.where(block * BLOCK + tl.arange(0, BLOCK) == token, weights, 0.0), 0)
            sampling_logprob = tl.log(drawn.to(tl.float64)) - tl.log(total)
            kept = _count_drawable(source, of_row, num_blocks, blocks, max_score, temperature, BLOCK)
    if is_hopeless | (is_cut(numbers, integers, batch_index, vocab) == 0):
        write_choice(
            source, packed, width, tl.where(is_hopeless, 0, token), sampling_logprob, tl.where(is_hopeless, 0, kept),
            statistics, last_token_ids,
        )  # fmt: skip


@triton.jit
def drawn_place(weights, before, target, BLOCK: tl.constexpr) -> Any:
    """The place in a block that a target points at; not beyond the last of any weight, where rounding may point."""
    places = tl.arange(0, BLOCK)
    last = tl.max(tl.where(weights > 0.0, places, 0), 0)
    return tl.minimum(tl.sum((before + tl.cumsum(weights, 0) <= target).to(tl.int32), 0), last)


@triton.jit
def _count_drawable(source, of_row, num_blocks, blocks, max_score, temperature, BLOCK: tl.constexpr) -> Any:
    """The number of weights above zero; reads only the blocks that may have one of zero."""
    is_block = blocks < num_blocks
    minima = tl.load(of_row + MIN * num_blocks + blocks, mask=is_block, other=0.0)
    is_whole = weight_of(minima, max_score, temperature) > 0.0
    sizes = tl.minimum(source[3] - blocks * BLOCK, BLOCK)
    kept = tl.sum(tl.where(is_block & is_whole, sizes, 0), 0)
    if tl.sum((is_block & (is_whole == 0)).to(tl.int32), 0) > 0:
        for block in range(num_blocks):
            least = tl.load(of_row + MIN * num_blocks + block)
            if weight_of(least, max_score, temperature) == 0.0:
                _, scores = load_scores(source, block * BLOCK, BLOCK)
                kept += tl.sum((weight_of(scores, max_score, temperature) > 0.0).to(tl.int32), 0)
    return kept
