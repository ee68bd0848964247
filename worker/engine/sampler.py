"""Chooses the next token of every row, and says what was known when it did. Tensors in, columns out.

Rows are taken a few at a time so that their scores stay in the processor's cache, and never one alone:
a reduction over a single row is split among threads and could round differently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from worker.engine.logits_processors import apply_history_processors, apply_sampling_filters, has_history_processors
from worker.engine.step_batch import MIN_ROWS

#: Sorted this many first; a nucleus that is larger is found by sorting the whole row.
NUCLEUS_CANDIDATES = 256

#: A cumulative probability this little above `top_p` is rounding, not excess (0.1 + 0.1 + 0.1 is not above 0.3).
TOP_P_SLACK = 1e-6

#: Tokens whose probabilities are summed together before the draw finds its place.
DRAW_BLOCK = 256

CHUNK_ELEMENTS = 2**19


@dataclass(frozen=True)
class SamplingRow:
    """What the choice of one row depends on beside its logits."""

    params: GenerationParams
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    eos_ids: tuple[int, ...]
    uniform: float  # this draw's number in [0, 1)


@dataclass(frozen=True)
class Choice:
    """The token of one row and its trace."""

    token_id: int
    logprob: float
    sampling_logprob: float
    entropy: float
    rank: int
    kept: int
    alternatives: list[tuple[int, float]]  # (token id, raw logprob), best first


@dataclass(frozen=True)
class Draw:
    token_id: int
    logprob: float
    kept: int


def choose_tokens(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    """One choice per row of logits [rows, vocab], of any dtype; computed in fp32."""
    choices: list[Choice] = []
    size = max(MIN_ROWS, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(rows), size):
        choices += _choose_chunk(logits[start : start + size].float(), rows[start : start + size])
    return choices


def _choose_chunk(scores: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    if scores.shape[0] < MIN_ROWS:
        scores = scores.expand(MIN_ROWS, -1).contiguous()
    logprobs = torch.log_softmax(scores, dim=-1)
    greedy_ids = _argmax(scores)
    draws = [_draw_row(scores, logprobs, greedy_ids, index, row) for index, row in enumerate(rows)]
    picked = torch.tensor([draw.token_id for draw in draws] + [0] * (len(scores) - len(draws)), device=scores.device)
    chosen = logprobs.gather(1, picked[:, None])
    entropies, ranks = _trace_columns(logprobs, chosen, rows)
    return [
        Choice(
            draw.token_id,
            logprob,
            draw.logprob,
            entropy,
            rank,
            draw.kept,
            top_alternatives(logprobs[index], row.params.top_logprobs),
        )
        for index, (draw, row, logprob, entropy, rank) in enumerate(
            zip(draws, rows, chosen[:, 0].tolist(), entropies, ranks, strict=False)
        )
    ]


def _argmax(scores: Tensor) -> list[int]:
    """The lowest id of the largest score of each row. NumPy's is several times as fast as torch's on a CPU."""
    if scores.device.type == "cpu":
        return [int(token_id) for token_id in np.argmax(scores.numpy(), axis=-1)]
    return list(scores.argmax(-1).tolist())


def _trace_columns(logprobs: Tensor, chosen: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[float], list[int]]:
    """Entropy and rank of each row; zeros where nobody asked, because each costs a pass over the vocabulary."""
    if all(row.params.trace == "none" for row in rows):
        return [0.0] * len(logprobs), [0] * len(logprobs)
    entropies = entropies_of(logprobs)
    is_plainly_greedy = [
        row.params.strategy is Strategy.GREEDY and not has_history_processors(row.params) for row in rows
    ]
    if all(is_plainly_greedy):
        return entropies, [1] * len(logprobs)
    return entropies, [int(count) + 1 for count in (logprobs > chosen).sum(-1).tolist()]


def entropies_of(logprobs: Tensor) -> list[float]:
    """The entropy of each row of logprobs [rows, vocab], in nats; a row alone is given twice (see above)."""
    # A probability of zero has a logprob of -inf, and 0 * -inf would be NaN.
    return list((-(logprobs.exp() * logprobs.clamp_min(-1e30)).sum(-1)).tolist())


def _draw_row(scores: Tensor, logprobs: Tensor, greedy_ids: list[int], index: int, row: SamplingRow) -> Draw:
    params = row.params
    processed = scores[index : index + 1]
    is_processed = has_history_processors(params)
    if is_processed:
        processed = apply_history_processors(processed, params, row.prompt_ids, row.token_ids, row.eos_ids)
    if params.strategy is Strategy.GREEDY:
        return Draw(int(processed.argmax()) if is_processed else greedy_ids[index], 0.0, 1)
    if is_processed or params.temperature != 1.0:
        scaled = processed[0] / params.temperature
        scaled = scaled - scaled.max()
    else:
        scaled = None
    if params.strategy is Strategy.NUCLEUS:
        row_weights = (logprobs[index] if scaled is None else scaled).exp()
        return draw_nucleus(row_weights, params.top_p, row.uniform)
    if params.top_k is not None or params.min_p:
        base = processed / params.temperature
        filtered = apply_sampling_filters(base, params)[0]
        row_weights = (filtered - filtered.max()).exp()
        return draw_from_all(row_weights, row.uniform, kept=int((filtered > float("-inf")).sum()))
    return draw_from_all((logprobs[index] if scaled is None else scaled).exp(), row.uniform)


def draw_from_all(weights: Tensor, uniform: float, kept: int | None = None) -> Draw:
    """Draws in order of token id from weights [vocab] by inverting their cumulative sum.

    The sum is found in two levels, so that only the block the draw falls into is added up one by one.
    """
    vocab = weights.shape[0]
    whole = vocab - vocab % DRAW_BLOCK
    blocks = weights[:whole].view(-1, DRAW_BLOCK).sum(-1, dtype=torch.float64)
    if whole < vocab:
        blocks = torch.cat([blocks, weights[whole:].sum(dtype=torch.float64)[None]])
    cumulative = blocks.cumsum(0)
    total = float(cumulative[-1])
    target = uniform * total
    block = int(torch.searchsorted(cumulative, target, right=True))
    block = min(block, int(blocks.nonzero()[-1]))
    before = float(cumulative[block - 1]) if block else 0.0
    start = block * DRAW_BLOCK
    inside = weights[start : start + DRAW_BLOCK].double()
    place = int(torch.searchsorted(inside.cumsum(0), target - before, right=True))
    place = min(place, int(inside.nonzero()[-1]))
    logprob = float(inside[place].log()) - math.log(total)
    return Draw(start + place, logprob, int((weights > 0).sum()) if kept is None else kept)


def draw_nucleus(weights: Tensor, top_p: float, uniform: float) -> Draw:
    """Draws from the nucleus of weights [vocab] (unnormalised probabilities), the most probable first."""
    if top_p >= 1.0:
        return draw_from_all(weights, uniform)
    token_ids, kept_weights = nucleus(weights, top_p)
    cumulative = kept_weights.cumsum(0)
    total = float(cumulative[-1])
    place = int(torch.searchsorted(cumulative, uniform * total, right=True))
    place = min(place, len(token_ids) - 1)
    return Draw(int(token_ids[place]), float(kept_weights[place].log()) - math.log(total), len(token_ids))


def nucleus(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens whose cumulative probability does not exceed `top_p`, or the first alone, and their weights.

    Sorted by probability, equal ones by id. Returns ids [kept] and float64 weights [kept].
    """
    total = weights.sum(dtype=torch.float64)
    if NUCLEUS_CANDIDATES < weights.shape[0]:
        values, ids = weights.topk(NUCLEUS_CANDIDATES)
        num_kept = _num_kept(values, total, top_p)
        # topk orders equal weights as it likes: only trusted where the cut does not run through its last value.
        if num_kept < NUCLEUS_CANDIDATES and values[num_kept - 1] > values[-1]:
            ids, by_id = ids.sort()
            values, order = values[by_id].sort(descending=True, stable=True)
            return ids[order][:num_kept], values[:num_kept].double()
    values, ids = weights.sort(descending=True, stable=True)
    num_kept = _num_kept(values, total, top_p)
    return ids[:num_kept], values[:num_kept].double()


def _num_kept(values: Tensor, total: Tensor, top_p: float) -> int:
    cumulative = values.cumsum(0, dtype=torch.float64)
    return max(1, int((cumulative <= (top_p + TOP_P_SLACK) * total).sum()))


def top_alternatives(logprobs: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` most probable tokens of logprobs [vocab], equal ones by id."""
    if not count:
        return []
    values, ids = logprobs.topk(min(count, logprobs.shape[0]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
