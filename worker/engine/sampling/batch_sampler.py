"""The sampler for a GPU: all rows at once, in tensors that stay on the device until `ChoicesInFlight.collect`.

Samples as `row_sampler` does, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.engine.choices import COLUMNS, Choices
from worker.engine.model.device_copies import fetch, to_device
from worker.engine.sampling.edited_scores import edited_scores
from worker.engine.sampling.nucleus import SLACK
from worker.engine.sampling_row import SamplingRow, SamplingRules

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
        rows = self._columns().numpy()
        width, k = len(COLUMNS), self._num_alternatives
        return Choices(
            columns=rows[:, :width],
            alternative_ids=rows[:, width : width + k].astype(np.int32),
            alternative_logprobs=rows[:, width + k :].astype(np.float32),
        )


#: Samples logits [rows, vocab]; none of the rows has a token in flight.
SampleBatch = Callable[[Tensor, Sequence[SamplingRow]], Choices]

#: Launches what `SampleBatch` does; takes the tokens in flight [tokens] that rows name.
LaunchSampleBatch = Callable[[Tensor, Sequence[SamplingRow], Tensor | None], ChoicesInFlight]


def sample_batch(logits: Tensor, rows: Sequence[SamplingRow]) -> Choices:
    """Samples every row of logits [rows, vocab]."""
    return launch_sample_batch(logits, rows).collect()


def launch_sample_batch(
    logits: Tensor, rows: Sequence[SamplingRow], ids_in_flight: Tensor | None = None
) -> ChoicesInFlight:
    """Launches `sample_batch`. Waits for the device only where more tokens may be kept than are sorted first."""
    scores = logits.float()
    logprobs = torch.log_softmax(scores, dim=-1)
    token_ids, sampling_logprobs, kept = _sample_tokens(edited_scores(scores, rows, ids_in_flight), rows)
    token_logprobs = logprobs.gather(1, token_ids[:, None])
    # A probability of zero has a logprob of -inf, and 0 * -inf would be NaN.
    entropies = -(logprobs.exp() * logprobs.clamp_min(-1e30)).sum(-1)
    ranks = (logprobs > token_logprobs).sum(-1) + 1
    columns = (token_ids, token_logprobs[:, 0], sampling_logprobs, entropies, ranks, kept)
    num_alternatives = min(max(each.params.top_logprobs for each in rows), logprobs.shape[1])
    values, ids = most_probable(logprobs, num_alternatives)
    numbers = torch.stack([column.double() for column in columns], dim=1)
    packed = torch.cat([numbers, ids.double(), values.double()], dim=1)
    return ChoicesInFlight(token_ids, fetch(packed), num_alternatives)


def most_probable(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row of logprobs [rows, vocab], and their ids, in any order; of equal ones the first.

    `topk` leaves open which of equal ones it takes, and takes others where a row beside asks for more.
    """
    if not count:
        return logprobs[:, :0], logprobs[:, :0].long()
    least = logprobs.topk(count, dim=-1).values[:, -1:]
    vocab = logprobs.shape[1]
    from_last = torch.arange(vocab, 0, -1, device=logprobs.device)
    order = torch.where(logprobs > least, from_last + vocab, torch.where(logprobs == least, from_last, 0))
    ids = order.topk(count, dim=-1).indices
    return logprobs.gather(1, ids), ids


def _sample_tokens(scores: Tensor, rows: Sequence[SamplingRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, their logprobs in the distribution drawn from, and its number of tokens; [rows] each."""
    token_ids = scores.argmax(-1)  # the first of equal ones
    is_possible = scores.amax(-1) > -torch.inf
    logprobs = torch.where(is_possible, 0.0, torch.nan).double()  # NaN where every token is banned
    kept = torch.ones_like(token_ids)
    drawing = [index for index, row in enumerate(rows) if not row.rules.is_greedy]
    if not drawing:
        return token_ids, logprobs, kept
    indices = to_device(drawing, None, scores.device)
    picked = [rows[index] for index in drawing]
    drawn = _draw(scores[indices], [row.rules for row in picked], [row.uniform for row in picked])
    return (
        token_ids.index_copy(0, indices, drawn[0]),
        logprobs.index_copy(0, indices, drawn[1]),
        kept.index_copy(0, indices, drawn[2]),
    )


def _draw(scores: Tensor, rules: Sequence[SamplingRules], uniforms: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """`_sample_tokens` for rows that are not greedy: inverse transform sampling of each, as in `draw`."""
    weights = _weights(scores, rules)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = to_device(list(uniforms), torch.float64, scores.device)[:, None] * total
    token_ids = torch.searchsorted(cumulative, target, right=True)
    # Rounding may point beyond the last token of any weight.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
    token_ids = torch.minimum(token_ids, last)
    logprobs = weights.gather(1, token_ids).double().log() - total.log()
    return token_ids[:, 0], logprobs[:, 0], (weights > 0).sum(-1)


def _weights(scores: Tensor, rules: Sequence[SamplingRules]) -> Tensor:
    """Unnormalized probabilities [rows, vocab] to draw from, zero for tokens that the row's rules leave out."""
    temperatures = to_device([[each.temperature] for each in rules], None, scores.device)
    weights = ((scores - scores.amax(-1, keepdim=True)) / temperatures).exp_()
    if any(each.top_k for each in rules):
        weights = weights.masked_fill(scores < _least_of_top_k(scores, rules), 0.0)
    likely = [index for index, each in enumerate(rules) if may_wait(each)]
    if likely:
        rows = to_device(likely, None, scores.device)
        probabilities = [[min(rules[index].top_p, rules[index].nucleus_p)] for index in likely]
        keeps_crossing = to_device([[rules[index].top_p < 1.0] for index in likely], None, scores.device)
        limits = to_device(probabilities, torch.float64, scores.device)
        weights = weights.index_copy(0, rows, keep_nucleus(weights[rows], limits, keeps_crossing))
    if any(each.min_p for each in rules):
        least = to_device([[each.min_p] for each in rules], torch.float32, scores.device)
        weights = weights.masked_fill(weights < least, 0.0)
    return weights


def may_wait(rules: SamplingRules) -> bool:
    """Whether sampling may have to wait for the device, to see whether the tokens sorted first are enough."""
    return rules.top_p < 1.0 or rules.nucleus_p < 1.0


def _least_of_top_k(scores: Tensor, rules: Sequence[SamplingRules]) -> Tensor:
    """The k-th largest score of each row [rows, 1]; -inf where all tokens are kept."""
    vocab = scores.shape[1]
    sizes = [min(each.top_k or vocab, vocab) for each in rules]
    most = max(size for size in sizes if size < vocab) if min(sizes) < vocab else 1
    places = to_device([[min(size, most) - 1] for size in sizes], None, scores.device)
    keeps_all = to_device([[size == vocab] for size in sizes], None, scores.device)
    return scores.topk(most, dim=-1).values.gather(1, places).masked_fill(keeps_all, -torch.inf)


def keep_nucleus(weights: Tensor, limits: Tensor, keeps_crossing: Tensor) -> Tensor:
    """Weights [rows, vocab] with zeros outside of each row's nucleus.

    `limits` [rows, 1] are cumulative probabilities; with `keeps_crossing` the token that crosses it is kept, too.
    """
    slack = torch.where(keeps_crossing, -SLACK, SLACK)
    limit = (limits + slack) * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(NUM_LARGEST, weights.shape[1])
    values, ids = weights.topk(size, dim=-1)
    is_kept, is_complete = _within(values, limit, keeps_crossing)
    if size < weights.shape[1] and not bool(is_complete.all()):
        values, ids = weights.sort(dim=-1, descending=True, stable=True)
        is_kept, _ = _within(values, limit, keeps_crossing)
    else:
        values, ids = _order_ties_by_id(values, ids)
    return torch.zeros_like(weights).scatter_(1, ids, values * is_kept)


def _within(values: Tensor, limit: Tensor, keeps_crossing: Tensor) -> tuple[Tensor, Tensor]:
    """Marks the nucleus among descending values [rows, size], and the rows whose nucleus ends before the last one."""
    is_within = values.cumsum(-1, dtype=torch.float64) <= limit
    is_kept = torch.where(keeps_crossing, is_within.roll(1, -1), is_within)
    is_kept[:, 0] = True
    smallest = torch.where(is_kept, values, torch.inf).amin(-1)
    return is_kept, smallest > values[:, -1]


def _order_ties_by_id(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Descending values [rows, size] and their ids, equal values by id: `topk` leaves their order open."""
    ids, by_id = ids.sort(dim=-1)
    values, order = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
