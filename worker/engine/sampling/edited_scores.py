"""Bias, penalties and bans on the scores of many rows at once, on any device.

In Transformers' order, and with its rules: `logits_processors` is the reference. A token that is still on the device
counts as generated, too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from worker.engine.model.device_copies import send, to_device
from worker.engine.sampling_row import SamplingRow, SamplingRules

#: Rows and token ids [entries] of the same device.
Entries = tuple[Tensor, Tensor]


def edited_scores(scores: Tensor, rows: Sequence[SamplingRow], ids_in_flight: Tensor | None) -> Tensor:
    """Scores [rows, vocab] as the rows' rules change them; the given ones where none does."""
    edited = [index for index, row in enumerate(rows) if row.has_edits]
    if not edited:
        return scores
    indices = to_device(edited, None, scores.device)
    return scores.index_copy(0, indices, _edit(scores[indices], [rows[index] for index in edited], ids_in_flight))


def _edit(scores: Tensor, rows: Sequence[SamplingRow], ids_in_flight: Tensor | None) -> Tensor:
    biased = _entries(scores, (row.state.biased_ids for row in rows))
    biases = np.concatenate([np.frombuffer(row.state.biases, np.float32) for row in rows])
    scores.index_put_(biased, send(torch.from_numpy(biases), scores.device), accumulate=True)
    if any(row.rules.is_penalized for row in rows):
        scores = _penalize(scores, rows, _generated(scores, rows, ids_in_flight))
    banned = _entries(scores, (row.state.banned_ids(row.num_generated) for row in rows))
    scores.index_put_(banned, scores.new_full((), -torch.inf))
    for index, row in enumerate(rows):
        if row.allowed is not None:
            scores[index].masked_fill_(~unpacked(row.allowed.to(scores.device), scores.shape[1]), -torch.inf)
    return scores


def _penalize(scores: Tensor, rows: Sequence[SamplingRow], generated: Entries) -> Tensor:
    counts = torch.zeros_like(scores).index_put_(generated, scores.new_ones(()), accumulate=True)
    is_seen = counts > 0
    is_seen.index_put_(_entries(scores, (row.state.prompt_ids for row in rows)), is_seen.new_ones(()))
    repetition = _column(scores, rows, lambda rules: rules.repetition_penalty)
    repeated = torch.where(scores < 0, scores * repetition, scores / repetition)
    scores = torch.where(is_seen & (repetition != 1), repeated, scores)
    presence = _column(scores, rows, lambda rules: rules.presence_penalty)
    frequency = _column(scores, rows, lambda rules: rules.frequency_penalty)
    return torch.where(counts > 0, scores - (presence + frequency * counts), scores)


def _generated(scores: Tensor, rows: Sequence[SamplingRow], ids_in_flight: Tensor | None) -> Entries:
    """The entries of the generated tokens, with those in flight."""
    indices, ids = _entries(scores, (row.state.token_ids for row in rows))
    flying = [(index, row.in_flight_index) for index, row in enumerate(rows) if row.in_flight_index is not None]
    if not flying:
        return indices, ids
    assert ids_in_flight is not None, "a row waits for a token in flight, and there is none"
    found = ids_in_flight[to_device([place for _, place in flying], None, ids_in_flight.device)].to(scores.device)
    return torch.cat([indices, to_device([index for index, _ in flying], None, scores.device)]), torch.cat([ids, found])


def _entries(scores: Tensor, ids: Iterable[array[int]]) -> Entries:
    """The rows and ids of each row's tokens; ids beyond the vocabulary are left out."""
    each = [np.frombuffer(row_ids, np.int32) for row_ids in ids]
    indices = np.repeat(np.arange(len(each)), [len(row_ids) for row_ids in each])
    joined = np.concatenate(each).astype(np.int64)
    is_known = joined < scores.shape[1]
    return (
        send(torch.from_numpy(indices[is_known]), scores.device),
        send(torch.from_numpy(joined[is_known]), scores.device),
    )


def _column(scores: Tensor, rows: Sequence[SamplingRow], value: Callable[[SamplingRules], float]) -> Tensor:
    """A rule of each row [rows, 1]."""
    return to_device([[value(row.rules)] for row in rows], torch.float32, scores.device)


def unpacked(allowed: Tensor, vocab: int) -> Tensor:
    """Bits of int32 [words] as booleans [vocab]."""
    bits = allowed[:, None] >> torch.arange(32, device=allowed.device, dtype=torch.int32)
    return (bits & 1).bool().flatten()[:vocab]
