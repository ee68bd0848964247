"""A row's scores in Triton: its logits a block at a time, after edits, as keys that are ordered, and as weights.

Every kernel of the sampler loads scores here, so that all see the same bits. Divisions are rounded as IEEE says, and
`enable_fp_fusion=False` keeps a compiler from fusing in one kernel and not in another.
"""

# Kernels are written in Triton's language, whose values have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from worker.engine.cuda.sampling import table

TEMPERATURE = tl.constexpr(int(table.Number.TEMPERATURE))
TOP_P = tl.constexpr(int(table.Number.TOP_P))
NUCLEUS_P = tl.constexpr(int(table.Number.NUCLEUS_P))
MIN_P = tl.constexpr(int(table.Number.MIN_P))
REPETITION_PENALTY = tl.constexpr(int(table.Number.REPETITION_PENALTY))
PRESENCE_PENALTY = tl.constexpr(int(table.Number.PRESENCE_PENALTY))
FREQUENCY_PENALTY = tl.constexpr(int(table.Number.FREQUENCY_PENALTY))
NUM_NUMBERS = tl.constexpr(len(table.Number))

SEED = tl.constexpr(int(table.Integer.SEED))
SAMPLE_INDEX = tl.constexpr(int(table.Integer.SAMPLE_INDEX))
TOP_K = tl.constexpr(int(table.Integer.TOP_K))
NUM_EDITS = tl.constexpr(int(table.Integer.NUM_EDITS))
NUM_ALTERNATIVES = tl.constexpr(int(table.Integer.NUM_ALTERNATIVES))
WANTS_TRACE = tl.constexpr(int(table.Integer.WANTS_TRACE))
IS_PENALIZED = tl.constexpr(int(table.Integer.IS_PENALIZED))
HAS_ALLOWED = tl.constexpr(int(table.Integer.HAS_ALLOWED))
NUM_INTEGERS = tl.constexpr(len(table.Integer))

MAX_EDITS = tl.constexpr(table.MAX_EDITS)

#: Weights of lower exponents are zero: fp32 has no normal number for them.
MIN_EXPONENT = tl.constexpr(-87.0)


@triton.jit
def load_logits(logits, row, row_stride, tokens, vocab) -> Any:
    """Logits of a row in fp32; -inf beyond the vocabulary."""
    first = logits + row.to(tl.int64) * row_stride
    return tl.load(first + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32)


@triton.jit
def is_edited(integers, batch_index) -> Any:
    """Whether a row draws from other scores than its logits."""
    of_row = integers + batch_index * NUM_INTEGERS
    return (tl.load(of_row + NUM_EDITS) + tl.load(of_row + IS_PENALIZED) + tl.load(of_row + HAS_ALLOWED)) > 0


@triton.jit
def _add_edits(scores, tokens, vocab, batch_index, num_edits, position, edit_ids, edit_values, edit_ranges) -> Any:
    """Adds the edits of tokens; both are in the order of their ids."""
    places = tl.arange(0, MAX_EDITS)
    of_row = batch_index * MAX_EDITS
    ids = tl.load(edit_ids + of_row + places, mask=places < num_edits, other=0x7FFFFFFF)
    start = tl.sum((ids < tl.min(tokens, 0)).to(tl.int32), 0)
    end = tl.sum((ids <= tl.max(tl.where(tokens < vocab, tokens, 0), 0)).to(tl.int32), 0)
    for edit in range(start, end):
        token = tl.load(edit_ids + of_row + edit)
        value = tl.load(edit_values + of_row + edit)
        is_held = (tl.load(edit_ranges + 2 * of_row + edit) <= position) & (
            position < tl.load(edit_ranges + 2 * of_row + MAX_EDITS + edit)
        )
        scores = tl.where((tokens == token) & is_held, scores + value, scores)
    return scores


@triton.jit
def _penalize(scores, tokens, vocab, batch_index, numbers, history) -> Any:
    """Transformers' repetition penalty, then OpenAI's presence and frequency penalties."""
    of_row = numbers + batch_index * NUM_NUMBERS
    repetition = tl.load(of_row + REPETITION_PENALTY).to(tl.float32)
    presence = tl.load(of_row + PRESENCE_PENALTY).to(tl.float32)
    frequency = tl.load(of_row + FREQUENCY_PENALTY).to(tl.float32)
    seen = tl.load(history + batch_index * vocab + tokens, mask=tokens < vocab, other=0)
    counts = seen & 0x3FFFFFFF  # without IN_PROMPT
    repeated = tl.where(scores < 0, scores * repetition, tl.div_rn(scores, repetition + tl.zeros_like(scores)))
    scores = tl.where(seen > 0, repeated, scores)
    return tl.where(counts > 0, scores - (presence + frequency * counts.to(tl.float32)), scores)


@triton.jit
def load_scores(source, first_token, BLOCK: tl.constexpr) -> tuple[Any, Any]:
    """Logits and scores of tokens first_token … first_token + BLOCK of a row; a kernel packs where they come from."""
    raw, scores = load_scores_of(source, first_token + tl.arange(0, BLOCK))
    return raw, scores


@triton.jit
def load_scores_of(source, tokens) -> tuple[Any, Any]:
    """Logits and scores of tokens in ascending order; -inf beyond the vocabulary."""
    logits, row, row_stride, vocab, batch_index, numbers, integers, num_generated = source[:8]
    raw = load_logits(logits, row, row_stride, tokens, vocab)
    scores = raw
    of_row = integers + batch_index * NUM_INTEGERS
    num_edits = tl.load(of_row + NUM_EDITS)
    if num_edits > 0:
        position = tl.load(num_generated + batch_index)
        scores = _add_edits(scores, tokens, vocab, batch_index, num_edits, position, source[8], source[9], source[10])
    if tl.load(of_row + IS_PENALIZED) > 0:
        scores = _penalize(scores, tokens, vocab, batch_index, numbers, source[11])
    if tl.load(of_row + HAS_ALLOWED) > 0:
        of_allowed = source[12] + batch_index * tl.cdiv(vocab, 32)
        words = tl.load(of_allowed + tokens // 32, mask=tokens < vocab, other=0)
        scores = tl.where(((words >> (tokens % 32)) & 1) == 1, scores, float("-inf"))
    return raw, scores


@triton.jit
def weight_of(scores, max_score, temperature) -> Any:
    """exp((score - max) / temperature), a number not above 1; as one function, so that equal scores weigh the same."""
    exponent = tl.div_rn(scores - max_score, temperature + tl.zeros_like(scores))
    return tl.where(exponent < MIN_EXPONENT, 0.0, tl.exp(exponent))


@triton.jit
def key_of(score, shift) -> Any:
    """An integer that is ordered as scores are whose lowest `shift` bits are zero."""
    bits = score.to(tl.int32, bitcast=True) >> shift
    return bits ^ ((bits >> 31) & (0x7FFFFFFF >> shift))


@triton.jit
def score_of(key, shift) -> Any:
    """The inverse of `key_of`."""
    bits = (key ^ ((key >> 31) & (0x7FFFFFFF >> shift))) << shift
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def middle_of(low, high) -> Any:
    """The integer between two, which may be too far apart for their difference."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def uniform_number(seed, sample_index, position) -> Any:
    """The number of `philox.uniforms`, bit for bit."""
    zero = (position * 0).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, position.to(tl.uint32), sample_index.to(tl.uint32), zero, zero)
    bits = ((first >> 5).to(tl.int64) << 26) | (second >> 6).to(tl.int64)
    return bits.to(tl.float64) * 1.1102230246251565e-16  # 2 ** -53
