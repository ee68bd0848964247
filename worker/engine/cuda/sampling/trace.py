"""The sampler's kernels for traces: the ranks of the tokens, and the most probable alternatives."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from worker.engine.cuda.sampling import output
from worker.engine.cuda.sampling.cuts import bound_of_top_k
from worker.engine.cuda.sampling.reduction import (
    NUM_PARTIAL,
    NUM_STATISTICS,
    RANK,
    RAW_MAX,
    ROW_LOG_SUM,
    ROW_RAW_MAX,
    SUBBLOCK,
    TOKEN_ID,
)
from worker.engine.cuda.sampling.scores import NUM_ALTERNATIVES, NUM_INTEGERS, WANTS_TRACE, load_logits

NUM_COLUMNS = tl.constexpr(len(output.Column))

#: Beyond every token.
NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def count_ranks(
    packed, width, partial, logits, row_stride, vocab, batch_indices, integers, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    """Grid (rows, blocks): adds the block's tokens that are more probable to the row's rank, where it wants a trace.

    Integers give the same sum in any order. A block whose largest logit is not above the token's is not read.
    """
    row = tl.program_id(0)
    block = tl.program_id(1)
    num_blocks = tl.num_programs(1)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    if tl.load(integers + batch_index * NUM_INTEGERS + WANTS_TRACE) > 0:
        token = tl.load(packed + row.to(tl.int64) * width + TOKEN_ID)
        logit = tl.load(logits + row.to(tl.int64) * row_stride + token).to(tl.float32)
        if tl.load(partial + (row * NUM_PARTIAL + RAW_MAX).to(tl.int64) * num_blocks + block) > logit:
            raw = load_logits(logits, row, row_stride, block * BLOCK + tl.arange(0, BLOCK), vocab)
            above = tl.sum((raw > logit).to(tl.int32), 0)
            tl.atomic_add(packed + row.to(tl.int64) * width + RANK, above)


@triton.jit(do_not_specialize=["max_alternatives"])  # jobs of a run may ask for several numbers
def find_alternatives(
    packed, width, max_alternatives, statistics, partial, submax, num_blocks, candidate_scores, candidate_ids, logits,
    row_stride, vocab, batch_indices, integers,
    BLOCK: tl.constexpr, CAPACITY: tl.constexpr, SUBBLOCKS_PADDED: tl.constexpr, SHIFT: tl.constexpr,
) -> None:  # fmt: skip
    """Grid (rows): each row's most probable tokens, equal ones by id; ids of -1 and -inf after the last."""
    row = tl.program_id(0)
    batch_index = tl.load(batch_indices + row).to(tl.int64)
    wanted = tl.load(integers + batch_index * NUM_INTEGERS + NUM_ALTERNATIVES).to(tl.int32)
    ids_of_row = packed + row.to(tl.int64) * width + NUM_COLUMNS
    if wanted > 0:
        num_subblocks = num_blocks * (BLOCK // SUBBLOCK)
        of_submax = submax + (row * 2).to(tl.int64) * num_subblocks
        bound = bound_of_top_k(of_submax, wanted, num_subblocks, SHIFT, SUBBLOCKS_PADDED)
        candidate_scores += row.to(tl.int64) * CAPACITY
        candidate_ids += row.to(tl.int64) * CAPACITY
        # Fewer than `wanted` subblocks reach beyond the bound, and of the tokens on it the first ones suffice.
        count = tl.full([], 0, tl.int32)
        num_on_bound = tl.full([], 0, tl.int32)
        for block in range(num_blocks):
            if tl.load(partial + (row * NUM_PARTIAL + RAW_MAX).to(tl.int64) * num_blocks + block) >= bound:
                tokens = block * BLOCK + tl.arange(0, BLOCK)
                raw = load_logits(logits, row, row_stride, tokens, vocab)
                is_on_bound = (raw == bound) & (raw > float("-inf"))
                is_first = is_on_bound & (num_on_bound + tl.cumsum(is_on_bound.to(tl.int32), 0) <= wanted)
                is_candidate = (raw > bound) | is_first
                places = count + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
                is_stored = is_candidate & (places < CAPACITY)
                tl.store(candidate_scores + places, raw, mask=is_stored)
                tl.store(candidate_ids + places, tokens, mask=is_stored)
                count += tl.sum(is_candidate.to(tl.int32), 0)
                num_on_bound += tl.sum(is_on_bound.to(tl.int32), 0)
        tl.debug_barrier()
        places = tl.arange(0, CAPACITY)
        raw = tl.load(candidate_scores + places, mask=places < count, other=float("-inf"))
        ids = tl.load(candidate_ids + places, mask=places < count, other=NO_TOKEN)
        raw_max = tl.load(statistics + row * NUM_STATISTICS + ROW_RAW_MAX)
        log_sum = tl.load(statistics + row * NUM_STATISTICS + ROW_LOG_SUM)
        for place in range(wanted):
            best = tl.max(raw, 0)
            token = tl.min(tl.where(raw == best, ids, NO_TOKEN), 0)
            logprob = (best.to(tl.float64) - raw_max - log_sum).to(tl.float32)
            is_there = best > float("-inf")
            tl.store(ids_of_row + place, tl.where(is_there, token, -1))
            logprob = tl.where(is_there, logprob, float("-inf"))
            tl.store(ids_of_row + max_alternatives + place, logprob.to(tl.int32, bitcast=True))
            raw = tl.where(ids == token, float("-inf"), raw)
    for place in range(wanted, max_alternatives):
        tl.store(ids_of_row + place, -1)
        tl.store(ids_of_row + max_alternatives + place, -8388608)  # the bits of -inf
