"""The GPU's sampler in Torch: the same function of the same tensors as the kernels, for any device.

Never waits for the device. Sorts whole rows, so that it is slow: it is what kernels are compared with, and what stands
in for them where no kernel runs. Its arithmetic is that of `row_sampler`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.engine.cuda.sampling.output import FLOATS, Column, SamplerOutput
from worker.engine.cuda.sampling.table import IN_PROMPT, MAX_EDITS, Integer, Number, SamplingTable
from worker.engine.sampling.nucleus import SLACK

LOW_WORD = 0xFFFFFFFF


def sample_in_torch(logits: Tensor, batch_index: Tensor, table: SamplingTable, output: SamplerOutput) -> None:
    """Samples a token for each row of logits [rows, vocab], of any dtype, by the table's row of its batch index [rows].

    Writes `output`, and into the table the newest tokens, their number and the history.
    """
    rows = batch_index.long()
    numbers, integers = table.numbers[rows], table.integers[rows]
    raw = logits.float()
    logprobs = torch.log_softmax(raw, dim=-1)
    scores = _edited(raw, rows, integers, table)
    token_ids, sampling_logprobs, kept = _draw(scores, numbers, integers, table.num_generated[rows])
    saw_nan = ~(raw - raw.amax(-1, keepdim=True)).exp().sum(-1).isfinite()
    is_hopeless = saw_nan | (scores.amax(-1) == -torch.inf)
    token_ids, kept = token_ids.masked_fill(is_hopeless, 0), kept.masked_fill(is_hopeless, 0)
    token_logprobs = logprobs.gather(1, token_ids[:, None])[:, 0]
    wants_trace = integers[:, Integer.WANTS_TRACE].bool()
    entropies = -(logprobs.exp() * logprobs.clamp_min(-1e30)).sum(-1)
    ranks = (logprobs > token_logprobs[:, None]).sum(-1) + 1
    _write(output, {
        Column.TOKEN_ID: token_ids,
        Column.LOGPROB: token_logprobs.masked_fill(saw_nan, torch.nan),
        Column.SAMPLING_LOGPROB: sampling_logprobs.masked_fill(is_hopeless, torch.nan),
        Column.ENTROPY: torch.where(wants_trace, entropies, 0.0).masked_fill(saw_nan, torch.nan),
        Column.RANK: torch.where(wants_trace, ranks, 0),
        Column.KEPT: kept,
        Column.SAW_NAN: saw_nan,
    })  # fmt: skip
    write_alternatives(output, logprobs, integers[:, Integer.NUM_ALTERNATIVES])
    _advance(table, rows, token_ids, integers)


def _write(output: SamplerOutput, columns: dict[Column, Tensor]) -> None:
    for column, values in columns.items():
        words = values.float().view(torch.int32) if column in FLOATS else values.int()
        output.packed[:, column] = words


def write_alternatives(output: SamplerOutput, logprobs: Tensor, counts: Tensor) -> None:
    """The most probable tokens, equal ones by id; -1 and -inf where a row wants fewer."""
    width = output.num_alternatives
    if not width:
        return
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    most = min(width, logprobs.shape[1])
    is_wanted = torch.arange(most, device=logprobs.device) < counts[:, None]
    start = len(Column)
    output.packed[:, start : start + width] = -1
    output.packed[:, start + width :] = values.new_full((), -torch.inf).view(torch.int32)
    output.packed[:, start : start + most] = torch.where(is_wanted, ids[:, :most], -1).int()
    wanted = values[:, :most].masked_fill(~is_wanted, -torch.inf)
    output.packed[:, start + width : start + width + most] = wanted.view(torch.int32)


def _advance(table: SamplingTable, rows: Tensor, token_ids: Tensor, integers: Tensor) -> None:
    """Notes the tokens in the table."""
    table.last_token_ids.index_copy_(0, rows, token_ids)
    table.num_generated.index_copy_(0, rows, table.num_generated[rows] + 1)
    is_penalized = integers[:, Integer.IS_PENALIZED].int()
    table.history.index_put_((rows, token_ids), is_penalized, accumulate=True)


def _edited(raw: Tensor, rows: Tensor, integers: Tensor, table: SamplingTable) -> Tensor:
    """Scores after bias, penalties and bans."""
    scores = _biased(raw, rows, integers, table)
    scores = _penalized(scores, rows, integers, table)
    bits = table.allowed[rows][:, :, None] >> torch.arange(32, device=raw.device, dtype=torch.int32)
    is_allowed = (bits & 1).bool().flatten(1)[:, : raw.shape[1]]
    has_allowed = integers[:, Integer.HAS_ALLOWED, None].bool()
    return scores.masked_fill(has_allowed & ~is_allowed, -torch.inf)


def _biased(raw: Tensor, rows: Tensor, integers: Tensor, table: SamplingTable) -> Tensor:
    ids, values = table.edit_ids[rows].long(), table.edit_values[rows]
    position = table.num_generated[rows, None]
    is_held = torch.arange(MAX_EDITS, device=raw.device) < integers[:, Integer.NUM_EDITS, None]
    is_held &= (table.edit_ranges[rows, 0] <= position) & (position < table.edit_ranges[rows, 1])
    is_held &= ids < raw.shape[1]
    ids = ids.clamp_max(raw.shape[1] - 1)
    is_ban = values == -torch.inf
    scores = raw.scatter_add(1, ids, torch.where(is_held & ~is_ban, values, 0.0))
    num_bans = torch.zeros_like(raw, dtype=torch.int32).scatter_add_(1, ids, (is_held & is_ban).int())
    return scores.masked_fill(num_bans > 0, -torch.inf)


def _penalized(scores: Tensor, rows: Tensor, integers: Tensor, table: SamplingTable) -> Tensor:
    history, numbers = table.history[rows], table.numbers[rows].float()
    counts = history & (IN_PROMPT - 1)
    repetition = numbers[:, Number.REPETITION_PENALTY, None]
    repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
    is_penalized = integers[:, Integer.IS_PENALIZED, None].bool()
    scores = torch.where(is_penalized & (repetition != 1) & (history > 0), repeated, scores)
    presence, frequency = numbers[:, Number.PRESENCE_PENALTY, None], numbers[:, Number.FREQUENCY_PENALTY, None]
    return torch.where(is_penalized & (counts > 0), scores - (presence + frequency * counts), scores)


def _draw(scores: Tensor, numbers: Tensor, integers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their logprobs in the distribution drawn from, and its number of tokens; [rows] each."""
    temperature = numbers[:, Number.TEMPERATURE, None].float()
    is_greedy = temperature[:, 0] == 0
    weights = _weights(scores, torch.where(temperature == 0, 1.0, temperature), numbers, integers)
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = uniform_numbers(integers[:, Integer.SEED], integers[:, Integer.SAMPLE_INDEX], positions)[:, None] * total
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
    drawn = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    logprobs = weights.gather(1, drawn).double().log() - total.log()
    return (
        torch.where(is_greedy, scores.argmax(-1), drawn[:, 0]),
        logprobs[:, 0].masked_fill(is_greedy, 0.0),
        (weights > 0).sum(-1).masked_fill(is_greedy, 1),
    )


def _weights(scores: Tensor, temperature: Tensor, numbers: Tensor, integers: Tensor) -> Tensor:
    """Unnormalized probabilities [rows, vocab], zero for tokens that are left out."""
    vocab = scores.shape[1]
    weights = ((scores - scores.amax(-1, keepdim=True)) / temperature).exp()
    top_k = integers[:, Integer.TOP_K, None]
    places = torch.where(top_k == 0, vocab, top_k).clamp_max(vocab) - 1
    least = scores.sort(dim=-1, descending=True).values.gather(1, places)
    weights = weights.masked_fill(scores < least, 0.0)
    weights = _keep_nucleus(weights, numbers[:, Number.TOP_P, None], numbers[:, Number.NUCLEUS_P, None])
    return weights.masked_fill(weights < numbers[:, Number.MIN_P, None].float(), 0.0)


def _keep_nucleus(weights: Tensor, top_p: Tensor, nucleus_p: Tensor) -> Tensor:
    keeps_crossing = top_p < 1
    limit = torch.minimum(top_p, nucleus_p)
    values, ids = weights.sort(dim=-1, descending=True, stable=True)
    mass = (limit + torch.where(keeps_crossing, -SLACK, SLACK)) * weights.sum(-1, keepdim=True, dtype=torch.float64)
    is_within = values.cumsum(-1, dtype=torch.float64) <= mass
    is_kept = torch.where(keeps_crossing, is_within.roll(1, -1), is_within)
    is_kept[:, 0] = True
    kept = torch.zeros_like(weights).scatter_(1, ids, values * is_kept)
    return torch.where(limit < 1, kept, weights)


def uniform_numbers(seeds: Tensor, sample_indices: Tensor, positions: Tensor) -> Tensor:
    """The numbers [rows] of `philox.uniforms`, bit for bit, on any device."""
    c0, c1 = positions.long(), sample_indices.long()
    c2 = c3 = torch.zeros_like(c0)
    k0, k1 = seeds & LOW_WORD, (seeds >> 32) & LOW_WORD
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((second >> 32) & LOW_WORD) ^ c1 ^ k0, second & LOW_WORD
        c2, c3 = ((first >> 32) & LOW_WORD) ^ c3 ^ k1, first & LOW_WORD
        k0, k1 = (k0 + 0x9E3779B9) & LOW_WORD, (k1 + 0xBB67AE85) & LOW_WORD
    return (((c0 >> 5) << 26) | (c1 >> 6)).double() * 2.0**-53
