"""Chooses the next token of every row, and says what was known when it did. Tensors in, columns out.

Rows are taken a few at a time so that their scores stay in the processor's cache, and never one alone:
a reduction over a single row is split among threads and could round differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.sampling.batch_sampler import ChooseBatch
from worker.engine.sampling.choices import Choice
from worker.engine.sampling.draw import Draw, draw_from_all, draw_nucleus
from worker.engine.sampling.logits_processors import (
    apply_history_processors,
    apply_sampling_filters,
    has_history_processors,
)

#: Scores that are worked on at a time: four rows of Qwen2's vocabulary.
CHUNK_ELEMENTS = 5 * 2**17


@dataclass(frozen=True)
class SamplingRow:
    """What the choice of one row depends on beside its logits."""

    params: GenerationParams
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    eos_ids: tuple[int, ...]
    uniform: float  # this draw's number in [0, 1)


def choose_tokens(logits: Tensor, rows: Sequence[SamplingRow], choose_batch: ChooseBatch | None = None) -> list[Choice]:
    """One choice per row of logits [rows, vocab], of any dtype; computed in fp32.

    `choose_batch` does all rows at once but for those that need their history or a filter.
    """
    if choose_batch is None:
        return _choose_by_chunks(logits, rows)
    together = [index for index, row in enumerate(rows) if not is_special(row.params)]
    special = [index for index, row in enumerate(rows) if is_special(row.params)]
    choices: dict[int, Choice] = {}
    if together:
        picked = logits if not special else logits[together]
        found = choose_batch(picked, [rows[index].params for index in together], [rows[i].uniform for i in together])
        for place, index in enumerate(together):
            choices[index] = found.of_row(place, rows[index].params.top_logprobs)
    if special:
        singled_out = _choose_by_chunks(logits[special], [rows[index] for index in special])
        choices.update(zip(special, singled_out, strict=True))
    return [choices[index] for index in range(len(rows))]


def is_special(params: GenerationParams) -> bool:
    """Whether a row needs its history or a filter, which `ChooseBatch` does not know."""
    return has_history_processors(params) or params.top_k is not None or bool(params.min_p)


def _choose_by_chunks(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    choices: list[Choice] = []
    size = max(MIN_ROWS, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(rows), size):
        choices += _choose_chunk(logits[start : start + size], rows[start : start + size])
    return choices


def _choose_chunk(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    if logits.shape[0] < MIN_ROWS:
        logits = logits.expand(MIN_ROWS, -1).contiguous()
    scores = logits.float()
    greedy_ids = argmax(logits)
    logprobs = torch.log_softmax(scores, dim=-1)
    draws = _draw_rows(scores, greedy_ids, rows)
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


def argmax(logits: Tensor) -> list[int]:
    """The lowest id of the largest logit of each row [rows, vocab]. NumPy's is several times as fast as torch's."""
    if logits.dtype is not torch.bfloat16:
        return np.argmax(logits.cpu().numpy(), axis=-1).tolist()  # type: ignore[no-any-return]
    # The patterns of floats above zero are ordered as the floats are, and those of all others are below.
    patterns = logits.contiguous().view(torch.int16).cpu().numpy()
    ids: list[int] = np.argmax(patterns, axis=-1).tolist()
    if min(patterns[row, token_id] for row, token_id in enumerate(ids)) <= 0:
        return argmax(logits.float())
    return ids


def _trace_columns(logprobs: Tensor, chosen: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[float], list[int]]:
    """Entropy and rank of each row; zeros where nobody asked, because each costs a pass over the vocabulary."""
    if all(row.params.trace == "none" for row in rows):
        return [0.0] * len(logprobs), [0] * len(logprobs)
    entropies = entropies_of(logprobs)
    if all(_is_plainly_greedy(row.params) for row in rows):
        return entropies, [1] * len(logprobs)
    are_above = (logprobs > chosen).cpu().numpy()
    return entropies, [int(np.count_nonzero(is_above)) + 1 for is_above in are_above]


def _is_plainly_greedy(params: GenerationParams) -> bool:
    return params.strategy is Strategy.GREEDY and not has_history_processors(params)


def entropies_of(logprobs: Tensor) -> list[float]:
    """The entropy of each row of logprobs [rows, vocab], in nats; a row alone is given twice (see above)."""
    # A probability of zero has a logprob of -inf, and 0 * -inf would be NaN.
    return list((logprobs.exp().mul_(logprobs.clamp_min(-1e30)).sum(-1).neg_()).tolist())


def _draw_rows(scores: Tensor, greedy_ids: list[int], rows: Sequence[SamplingRow]) -> list[Draw]:
    draws = [Draw(token_id, 0.0, 1) for token_id in greedy_ids[: len(rows)]]
    drawing = [index for index, row in enumerate(rows) if not _is_plainly_greedy(row.params)]
    if drawing:
        weights = _weights(scores, rows, drawing)
        for index, row_weights in zip(drawing, weights.cpu().numpy(), strict=True):
            params, uniform = rows[index].params, rows[index].uniform
            if params.strategy is Strategy.GREEDY:
                draws[index] = Draw(int(row_weights.argmax()), 0.0, 1)
            elif params.strategy is Strategy.NUCLEUS:
                draws[index] = draw_nucleus(row_weights, params.top_p, uniform)
            else:
                draws[index] = draw_from_all(row_weights, uniform)
    return draws


def _weights(scores: Tensor, rows: Sequence[SamplingRow], drawing: list[int]) -> Tensor:
    """Unnormalised probabilities [drawing, vocab] that the rows draw from; the largest of each row is 1."""
    params = [rows[index].params for index in drawing]
    chosen = scores if len(drawing) == len(scores) else scores[drawing]
    if any(map(has_history_processors, params)):
        chosen = torch.cat([_processed(chosen[place], rows[index]) for place, index in enumerate(drawing)])
    # The largest is subtracted before the division, which then overflows for no temperature.
    scaled = chosen - chosen.amax(-1, keepdim=True)
    if any(each.temperature != 1.0 for each in params):
        scaled.div_(torch.tensor([[each.temperature] for each in params], device=scores.device))
    for place, each in enumerate(params):
        if each.top_k is not None or each.min_p:
            scaled[place] = apply_sampling_filters(scaled[place : place + 1], each)[0]
    return scaled.exp_()


def _processed(scores: Tensor, row: SamplingRow) -> Tensor:
    """Scores [vocab] after the row's bias and penalties, as [1, vocab]."""
    if not has_history_processors(row.params):
        return scores[None]
    return apply_history_processors(scores[None], row.params, row.prompt_ids, row.token_ids, row.eos_ids)


def top_alternatives(logprobs: Tensor, count: int) -> list[tuple[int, float]]:
    """The `count` most probable tokens of logprobs [vocab], equal ones by id."""
    if not count:
        return []
    values, ids = logprobs.topk(min(count, logprobs.shape[0]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
