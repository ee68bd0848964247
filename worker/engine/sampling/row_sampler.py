"""The sampler for any device: a few rows at a time, with every parameter, and the trace's statistics beside.

Few rows, so that their scores stay in the processor's cache, and never a single one: a reduction over one row is
split among threads and may round differently. Knows no sequences; a row's history comes in its `SamplingRow`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worker.engine.choices import Choice, Choices, order_alternatives
from worker.engine.model.step_batch import MIN_ROWS
from worker.engine.sampling.batch_sampler import SampleBatch, most_probable
from worker.engine.sampling.draw import Draw, draw_nucleus
from worker.engine.sampling.edited_scores import unpacked
from worker.engine.sampling.logits_processors import apply_history_processors, apply_top_k, has_history_processors
from worker.engine.sampling.nucleus import Weights
from worker.engine.sampling_row import SamplingRow

#: Scores per chunk of rows: four rows of Qwen2's vocabulary.
CHUNK_ELEMENTS = 5 * 2**17


def sample_rows(logits: Tensor, rows: Sequence[SamplingRow], sample_batch: SampleBatch | None = None) -> list[Choice]:
    """Samples a token for each row of logits [rows, vocab], of any dtype; computes in fp32.

    `sample_batch`, where there is one, samples all rows at once except those with rules that it does not have.
    """
    if sample_batch is None:
        return _sample_in_chunks(logits, rows)
    rare = [index for index, row in enumerate(rows) if row.rules.is_rare]
    plain = [index for index, row in enumerate(rows) if not row.rules.is_rare]
    choices: dict[int, Choice] = {}
    if plain:
        batch = sample_batch(logits if not rare else logits[plain], [rows[index] for index in plain])
        choices = {index: batch.of_row(at, rows[index].params.top_logprobs) for at, index in enumerate(plain)}
    if rare:
        sampled = _sample_in_chunks(logits[rare], [rows[index] for index in rare])
        choices |= zip(rare, sampled, strict=True)
    return [choices[index] for index in range(len(rows))]


def sample_together(logits: Tensor, rows: Sequence[SamplingRow], sample_batch: SampleBatch | None) -> Choices:
    """`sample_rows` with its choices as arrays, as they come where `sample_batch` has every rule of the rows."""
    if sample_batch is None or any(row.rules.is_rare for row in rows):
        return Choices.stacked(sample_rows(logits, rows, sample_batch))
    return sample_batch(logits, rows)


def _sample_in_chunks(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    choices: list[Choice] = []
    size = max(MIN_ROWS, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(rows), size):
        choices += _sample_chunk(logits[start : start + size], rows[start : start + size])
    return choices


def _sample_chunk(logits: Tensor, rows: Sequence[SamplingRow]) -> list[Choice]:
    if logits.shape[0] < MIN_ROWS:
        logits = logits.expand(MIN_ROWS, -1).contiguous()
    scores = logits.float()
    logprobs = torch.log_softmax(scores, dim=-1)
    draws = _draw_rows(scores, argmax(logits), rows)
    padding = [0] * (len(scores) - len(draws))
    token_ids = torch.tensor([draw.token_id for draw in draws] + padding, device=scores.device)
    token_logprobs = logprobs.gather(1, token_ids[:, None])
    statistics = zip(token_logprobs[:, 0].tolist(), *_entropies_and_ranks(logprobs, token_logprobs, rows), strict=True)
    return [
        Choice(
            token_id=draw.token_id,
            logprob=logprob,
            sampling_logprob=draw.logprob,
            entropy=entropy,
            rank=rank,
            kept=draw.kept,
            alternatives=top_alternatives(row_logprobs, row.params.top_logprobs),
        )
        for row, draw, row_logprobs, (logprob, entropy, rank) in zip(rows, draws, logprobs, statistics, strict=False)
    ]


def argmax(logits: Tensor) -> list[int]:
    """The lowest id of the largest logit of each row [rows, vocab]. NumPy's is several times as fast as torch's."""
    if logits.dtype is not torch.bfloat16:
        return np.argmax(logits.cpu().numpy(), axis=-1).tolist()  # type: ignore[no-any-return]
    # As integers, the patterns of positive floats are ordered as the floats are; all others are zero or negative.
    patterns = logits.contiguous().view(torch.int16).cpu().numpy()
    ids: list[int] = np.argmax(patterns, axis=-1).tolist()
    if min(patterns[row, token_id] for row, token_id in enumerate(ids)) <= 0:
        return argmax(logits.float())
    return ids


def _entropies_and_ranks(
    logprobs: Tensor, token_logprobs: Tensor, rows: Sequence[SamplingRow]
) -> tuple[list[float], list[int]]:
    """Entropy and rank of each row of logprobs [rows, vocab], given those of the sampled tokens [rows, 1].

    Zeros where no row wants a trace, because each costs a pass over the vocabulary.
    """
    if all(row.params.trace == "none" for row in rows):
        return [0.0] * len(logprobs), [0] * len(logprobs)
    entropies = entropies_of(logprobs)
    if all(_is_plain_greedy(row) for row in rows):
        return entropies, [1] * len(logprobs)
    is_above = (logprobs > token_logprobs).cpu().numpy()
    return entropies, [int(np.count_nonzero(row)) + 1 for row in is_above]


def _is_plain_greedy(row: SamplingRow) -> bool:
    return row.rules.is_greedy and not row.has_edits


def entropies_of(logprobs: Tensor) -> list[float]:
    """The entropy in nats of each row of logprobs [rows, vocab], at least `MIN_ROWS` of them."""
    # A probability of zero has a logprob of -inf, and 0 * -inf would be NaN.
    return list((logprobs.exp().mul_(logprobs.clamp_min(-1e30)).sum(-1).neg_()).tolist())


def _draw_rows(scores: Tensor, greedy_ids: list[int], rows: Sequence[SamplingRow]) -> list[Draw]:
    """One draw per row; plain greedy rows take their `greedy_ids`."""
    draws = [Draw(token_id, 0.0, 1) for token_id in greedy_ids[: len(rows)]]
    drawing = [index for index, row in enumerate(rows) if not _is_plain_greedy(row)]
    if drawing:
        weights = _weights(scores, rows, drawing).cpu().numpy()
        for index, row_weights in zip(drawing, weights, strict=True):
            draws[index] = _draw(row_weights, rows[index])
    return draws


def _draw(weights: Weights, row: SamplingRow) -> Draw:
    if np.isnan(weights).any():  # NaN logits, or every token is banned
        return Draw(0, math.nan, 0)
    rules = row.rules
    if rules.is_greedy:
        return Draw(int(weights.argmax()), 0.0, 1)
    limit, keeps_crossing = min(rules.top_p, rules.nucleus_p), rules.top_p < 1.0
    return draw_nucleus(weights, limit, row.uniform, keeps_crossing=keeps_crossing, min_p=rules.min_p)


def _weights(scores: Tensor, rows: Sequence[SamplingRow], drawing: list[int]) -> Tensor:
    """Unnormalized probabilities [drawing, vocab] after `top_k`; the largest of each row is 1."""
    picked_rows = [rows[index] for index in drawing]
    picked = scores if len(drawing) == len(scores) else scores[drawing]
    if any(row.has_edits for row in picked_rows):
        picked = torch.cat([_processed(picked[place], row) for place, row in enumerate(picked_rows)])
    # The largest is subtracted before the division, which then overflows for no temperature.
    scaled = picked - picked.amax(-1, keepdim=True)
    temperatures = [row.rules.temperature or 1.0 for row in picked_rows]
    if any(temperature != 1.0 for temperature in temperatures):
        scaled.div_(torch.tensor([[temperature] for temperature in temperatures], device=scores.device))
    for place, row in enumerate(picked_rows):
        if row.rules.is_greedy:  # scores that are very near have the same weight
            scaled[place].masked_fill_(scaled[place] < 0, -torch.inf)
        if row.rules.top_k:
            scaled[place] = apply_top_k(scaled[place : place + 1], row.rules.top_k)[0]
    return scaled.exp_()


def _processed(scores: Tensor, row: SamplingRow) -> Tensor:
    """Scores [vocab] after the row's bias, penalties and bans, as [1, vocab]."""
    processed = scores[None]
    if has_history_processors(row.params):
        processed = apply_history_processors(
            processed, row.params, row.prompt_ids, row.token_ids, row.eos_ids, row.max_new_tokens
        )
    if row.allowed is not None:
        processed = processed.masked_fill(~unpacked(row.allowed.to(scores.device), len(scores)), -torch.inf)
    return processed


def top_alternatives(logprobs: Tensor, count: int) -> list[tuple[int, float]]:
    """Ids and logprobs of the `count` most probable tokens of logprobs [vocab], equal ones by id."""
    if not count:
        return []
    values, ids = most_probable(logprobs[None], min(count, logprobs.shape[0]))
    return order_alternatives(zip(ids[0].tolist(), values[0].tolist(), strict=True))
