"""The sampler for a GPU: every row at once, and one small transfer at the end that need not be waited for.

Makes the same choices as `sampler`, up to rounding; rows whose scores depend on their history are done by it.
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

#: Sorted this many first; a nucleus that is larger is found by sorting the whole row.
NUM_LARGEST = 1024

#: Chooses for logits [rows, vocab], given each row's parameters and number; knows no history and no filters.
ChooseBatch = Callable[[Tensor, Sequence[GenerationParams], Sequence[float]], Choices]


@dataclass(frozen=True)
class LaunchedChoices:
    """Choices on their way to the host."""

    token_ids: Tensor  # [rows] on the device
    _columns: Callable[[], Tensor]  # [rows, len(COLUMNS) + 2 * k], when they have arrived
    _num_alternatives: int

    def read(self) -> Choices:
        """Waits for them."""
        together = self._columns().tolist()
        width, k = len(COLUMNS), self._num_alternatives
        return Choices(
            columns=[row[:width] for row in together],
            alternative_ids=[[int(token_id) for token_id in row[width : width + k]] for row in together],
            alternative_logprobs=[row[width + k :] for row in together],
        )


#: Begins what `ChooseBatch` does.
LaunchBatch = Callable[[Tensor, Sequence[GenerationParams], Sequence[float]], LaunchedChoices]


def choose_batch(logits: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]) -> Choices:
    """Chooses for logits [rows, vocab]; `uniforms` are the draws' numbers.

    Knows no penalties, biases, `top_k` and `min_p`.
    """
    return launch_batch(logits, params, uniforms).read()


def launch_batch(logits: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]) -> LaunchedChoices:
    """Begins `choose_batch`. Waits for the device only where a nucleus may be larger than what is sorted first."""
    scores = logits.float()
    logprobs = torch.log_softmax(scores, dim=-1)
    greedy_ids = scores.argmax(-1)  # the first of equal ones
    token_ids, kept = greedy_ids, torch.ones_like(greedy_ids)
    sampling = torch.zeros_like(greedy_ids, dtype=torch.float64)
    drawing = [row for row, each in enumerate(params) if each.strategy is not Strategy.GREEDY]
    if drawing:
        rows = to_device(drawing, None, logits.device)
        drawn = _draw(scores[rows], [params[row] for row in drawing], [uniforms[row] for row in drawing])
        token_ids = token_ids.index_copy(0, rows, drawn[0])
        sampling = sampling.index_copy(0, rows, drawn[1])
        kept = kept.index_copy(0, rows, drawn[2])
    chosen = logprobs.gather(1, token_ids[:, None])
    entropies = -(logprobs.exp() * logprobs.clamp_min(-1e30)).sum(-1)
    ranks = (logprobs > chosen).sum(-1) + 1
    columns = torch.stack(
        [each.double() for each in (token_ids, chosen[:, 0], sampling, entropies, ranks, kept)], dim=1
    )
    num_alternatives = max(each.top_logprobs for each in params)
    best = logprobs.topk(min(num_alternatives, logprobs.shape[1]), dim=-1)
    together = torch.cat([columns, best.indices.double(), best.values.double()], dim=1)
    return LaunchedChoices(token_ids, fetch(together), best.indices.shape[1])


def _draw(
    scores: Tensor, params: Sequence[GenerationParams], uniforms: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their logprobs in the distribution drawn from, and how many tokens that holds; [rows] each."""
    device = scores.device
    temperatures = to_device([[each.temperature] for each in params], None, device)
    weights = ((scores - scores.amax(-1, keepdim=True)) / temperatures).exp_()
    nuclear = [row for row, each in enumerate(params) if each.strategy is Strategy.NUCLEUS and each.top_p < 1.0]
    if nuclear:
        rows = to_device(nuclear, None, device)
        top_p = to_device([[params[row].top_p] for row in nuclear], torch.float64, device)
        weights = weights.index_copy(0, rows, keep_nucleus(weights[rows], top_p))
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = to_device(list(uniforms), torch.float64, device)[:, None] * total
    token_ids = torch.searchsorted(cumulative, target, right=True)
    # Rounding may point beyond the last token that weighs anything.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
    token_ids = torch.minimum(token_ids, last)
    logprobs = weights.gather(1, token_ids).double().log() - total.log()
    return token_ids[:, 0], logprobs[:, 0], (weights > 0).sum(-1)


def keep_nucleus(weights: Tensor, top_p: Tensor) -> Tensor:
    """Weights [rows, vocab] with zeros outside of each row's nucleus; `top_p` [rows, 1]."""
    limit = (top_p + TOP_P_SLACK) * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(NUM_LARGEST, weights.shape[1])
    values, ids = weights.topk(size, dim=-1)
    is_kept, is_certain = _within(values, limit)
    if size < weights.shape[1] and not bool(is_certain.all()):
        values, ids = weights.sort(dim=-1, descending=True, stable=True)
        is_kept, _ = _within(values, limit)
    else:
        values, ids, is_kept = _by_id_where_equal(values, ids, is_kept)
    return torch.zeros_like(weights).scatter_(1, ids, values * is_kept)


def _within(values: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Which of descending values are in the nucleus, and for which rows the cut is before the last value."""
    is_kept = values.cumsum(-1, dtype=torch.float64) <= limit
    is_kept[:, 0] = True
    smallest = torch.where(is_kept, values, torch.inf).amin(-1)
    return is_kept, smallest > values[:, -1]


def _by_id_where_equal(values: Tensor, ids: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest values again, equal ones in the order of their ids: `topk` orders those as it likes."""
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order), is_kept
