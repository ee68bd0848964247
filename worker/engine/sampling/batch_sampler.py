"""The sampler for a GPU: all rows at once, in tensors that stay on the device until `ChoicesInFlight.collect`.

Samples as `row_sampler` does, up to rounding, but only rows that need neither their history nor `top_k` or `min_p`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.params import GenerationParams
from models.states import Strategy
from worker.engine.model.device_copies import fetch, to_device
from worker.engine.sampling.choices import COLUMNS, Choices
from worker.engine.sampling.nucleus import TOP_P_SLACK

#: Tokens per row that are sorted first; a row whose nucleus is larger is sorted whole.
NUM_LARGEST = 1024


@dataclass(frozen=True)
class ChoicesInFlight:
    """Choices that the device computes and copies to the host while the host goes on."""

    token_ids: Tensor  # [rows] on the device
    _columns: Callable[[], Tensor]  # waits for [rows, len(COLUMNS) + 2 * k]: the columns, alternatives' ids, logprobs
    _num_alternatives: int

    def collect(self) -> Choices:
        """Waits for the copy to the host."""
        rows = self._columns().tolist()
        width, k = len(COLUMNS), self._num_alternatives
        return Choices(
            columns=[row[:width] for row in rows],
            alternative_ids=[[int(token_id) for token_id in row[width : width + k]] for row in rows],
            alternative_logprobs=[row[width + k :] for row in rows],
        )


#: Samples logits [rows, vocab], given the parameters and the uniform number in [0, 1) of each row.
SampleBatch = Callable[[Tensor, Sequence[GenerationParams], Sequence[float]], Choices]

#: Launches what `SampleBatch` does.
LaunchSampleBatch = Callable[[Tensor, Sequence[GenerationParams], Sequence[float]], ChoicesInFlight]


def sample_batch(logits: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]) -> Choices:
    """Samples every row of logits [rows, vocab]; ignores penalties, biases, `top_k` and `min_p`."""
    return launch_sample_batch(logits, params, uniforms).collect()


def launch_sample_batch(
    logits: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]
) -> ChoicesInFlight:
    """Launches `sample_batch`. Waits for the device only where a nucleus may exceed the tokens sorted first."""
    scores = logits.float()
    logprobs = torch.log_softmax(scores, dim=-1)
    token_ids, sampling_logprobs, kept = _sample_tokens(scores, params, uniforms)
    token_logprobs = logprobs.gather(1, token_ids[:, None])
    # A probability of zero has a logprob of -inf, and 0 * -inf would be NaN.
    entropies = -(logprobs.exp() * logprobs.clamp_min(-1e30)).sum(-1)
    ranks = (logprobs > token_logprobs).sum(-1) + 1
    columns = (token_ids, token_logprobs[:, 0], sampling_logprobs, entropies, ranks, kept)
    num_alternatives = min(max(each.top_logprobs for each in params), logprobs.shape[1])
    best = logprobs.topk(num_alternatives, dim=-1)
    numbers = torch.stack([column.double() for column in columns], dim=1)
    packed = torch.cat([numbers, best.indices.double(), best.values.double()], dim=1)
    return ChoicesInFlight(token_ids, fetch(packed), num_alternatives)


def _sample_tokens(
    scores: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their logprobs in the distribution drawn from, and its number of tokens; [rows] each."""
    token_ids = scores.argmax(-1)  # the first of equal ones
    logprobs, kept = torch.zeros_like(token_ids, dtype=torch.float64), torch.ones_like(token_ids)
    drawing = [row for row, each in enumerate(params) if each.strategy is not Strategy.GREEDY]
    if not drawing:
        return token_ids, logprobs, kept
    rows = to_device(drawing, None, scores.device)
    drawn = _draw(scores[rows], [params[row] for row in drawing], [uniforms[row] for row in drawing])
    return (
        token_ids.index_copy(0, rows, drawn[0]),
        logprobs.index_copy(0, rows, drawn[1]),
        kept.index_copy(0, rows, drawn[2]),
    )


def _draw(
    scores: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """`_sample_tokens` for rows that are not greedy: inverse transform sampling of each, as in `draw`."""
    weights = _weights(scores, params)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = to_device(list(uniforms), torch.float64, scores.device)[:, None] * total
    token_ids = torch.searchsorted(cumulative, target, right=True)
    # Rounding may point beyond the last token of any weight.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
    token_ids = torch.minimum(token_ids, last)
    logprobs = weights.gather(1, token_ids).double().log() - total.log()
    return token_ids[:, 0], logprobs[:, 0], (weights > 0).sum(-1)


def _weights(scores: Tensor, params: Sequence[GenerationParams]) -> Tensor:
    """Unnormalised probabilities [rows, vocab] to draw from, zero outside of a row's nucleus."""
    temperatures = to_device([[each.temperature] for each in params], None, scores.device)
    weights = ((scores - scores.amax(-1, keepdim=True)) / temperatures).exp_()
    nuclear = [row for row, each in enumerate(params) if each.strategy is Strategy.NUCLEUS and each.top_p < 1.0]
    if not nuclear:
        return weights
    rows = to_device(nuclear, None, scores.device)
    top_p = to_device([[params[row].top_p] for row in nuclear], torch.float64, scores.device)
    return weights.index_copy(0, rows, keep_nucleus(weights[rows], top_p))


def keep_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Weights [rows, vocab] with zeros outside of each row's nucleus; `top_p` [rows, 1]."""
    limit = (top_p + TOP_P_SLACK) * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(NUM_LARGEST, weights.shape[1])
    values, ids = weights.topk(size, dim=-1)
    is_kept, is_complete = _within(values, limit)
    if size < weights.shape[1] and not bool(is_complete.all()):
        values, ids = weights.sort(dim=-1, descending=True, stable=True)
        is_kept, _ = _within(values, limit)
    else:
        values, ids = _order_ties_by_id(values, ids)
    return torch.zeros_like(weights).scatter_(1, ids, values * is_kept)


def _within(values: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Marks the nucleus among descending values [rows, size], and the rows whose nucleus ends before the last one."""
    is_kept = values.cumsum(-1, dtype=torch.float64) <= limit
    is_kept[:, 0] = True
    smallest = torch.where(is_kept, values, torch.inf).amin(-1)
    return is_kept, smallest > values[:, -1]


def _order_ties_by_id(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Descending values [rows, size] and their ids, equal values by id: `topk` leaves their order open."""
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
