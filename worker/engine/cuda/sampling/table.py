"""The device's block of sampling parameters: tensors with a row for each running sequence, its `batch_index`.

The host writes a row when its sequence begins, `SamplingRules` packed, and never again: position, newest token and
history go on by the sampler itself. Batch index 0 may stand for padding: an empty row is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.cuda.row_words import Field, WordUpdates, carve
from worker.engine.sampling_row import SamplingRules

#: Biased and banned tokens that a row of the table holds.
MAX_EDITS = 512

#: The bit of `SamplingTable.history` that says that a token is in the prompt; the bits below count it in the answer.
IN_PROMPT = 1 << 30

#: The end of an edit that holds for the whole answer.
FOREVER = 2**31 - 1


class Number(IntEnum):
    """Columns of `SamplingTable.numbers`."""

    TEMPERATURE = 0
    TOP_P = 1
    NUCLEUS_P = 2
    MIN_P = 3
    REPETITION_PENALTY = 4
    PRESENCE_PENALTY = 5
    FREQUENCY_PENALTY = 6


class Integer(IntEnum):
    """Columns of `SamplingTable.integers`."""

    SEED = 0
    SAMPLE_INDEX = 1
    TOP_K = 2
    NUM_EDITS = 3
    NUM_ALTERNATIVES = 4
    WANTS_TRACE = 5  # entropy and rank are computed
    IS_PENALIZED = 6  # `history` is read and goes on
    HAS_ALLOWED = 7  # `allowed` is read


@dataclass(frozen=True)
class Edit:
    """A bias, or a ban where `value` is -inf, of one token while `first` <= generated tokens < `end`."""

    token_id: int
    value: float
    first: int = 0
    end: int = FOREVER


@dataclass(frozen=True)
class SamplingTable:
    """Parameters and state of the rows that may be sampled; its addresses never change, so that graphs hold them."""

    numbers: Tensor  # float64 [max_num_seqs, Number]
    integers: Tensor  # int64 [max_num_seqs, Integer]
    num_generated: Tensor  # int32 [max_num_seqs]; the sampler adds one
    last_token_ids: Tensor  # int64 [max_num_seqs]; the sampler writes them
    edit_ids: Tensor  # int32 [max_num_seqs, MAX_EDITS], ascending
    edit_values: Tensor  # float32 [max_num_seqs, MAX_EDITS]
    edit_ranges: Tensor  # int32 [max_num_seqs, 2, MAX_EDITS]: first and end
    history: Tensor  # int32 [max_num_seqs, vocab]: occurrences in the answer, and IN_PROMPT
    allowed: Tensor  # int32 [max_num_seqs, ceil(vocab / 32)]: a bit for each token that may come

    words: Tensor  # int32, all of them

    @classmethod
    def make(cls, max_num_seqs: int, vocab: int, device: torch.device) -> SamplingTable:
        """A table of empty rows: greedy ones without a trace."""
        words, fields = carve(cls.fields(max_num_seqs, vocab), device)
        return cls(**fields, words=words)

    @staticmethod
    def fields(max_num_seqs: int, vocab: int) -> dict[str, Field]:
        """The tensors by name."""

        def field(*shape: int, dtype: torch.dtype = torch.int32) -> Field:
            return Field((max_num_seqs, *shape), dtype)

        return {
            "numbers": field(len(Number), dtype=torch.float64),
            "integers": field(len(Integer), dtype=torch.int64),
            "num_generated": field(),
            "last_token_ids": field(dtype=torch.int64),
            "edit_ids": field(MAX_EDITS),
            "edit_values": field(MAX_EDITS, dtype=torch.float32),
            "edit_ranges": field(2, MAX_EDITS),
            "history": field(vocab),
            "allowed": field(-(-vocab // 32)),
        }

    @property
    def vocab(self) -> int:
        return self.history.shape[1]


@dataclass(frozen=True)
class TableRow:
    """A row of the table as the host writes it."""

    numbers: list[float]  # [Number]
    integers: list[int]  # [Integer]
    edits: list[Edit]  # ascending by token


def fits_table(rules: SamplingRules) -> bool:
    """Whether the GPU's sampler has every rule of a row; the row sampler has all."""
    return not rules.is_rare and len(_edits_of(rules)) <= MAX_EDITS


def table_row(
    rules: SamplingRules, seed: int, sample_index: int, num_alternatives: int, wants_trace: bool, has_allowed: bool
) -> TableRow:
    """The row of a sequence whose rules fit the table."""
    edits = _edits_of(rules)
    numbers = {
        Number.TEMPERATURE: rules.temperature,
        Number.TOP_P: rules.top_p,
        Number.NUCLEUS_P: rules.nucleus_p,
        Number.MIN_P: rules.min_p,
        Number.REPETITION_PENALTY: rules.repetition_penalty,
        Number.PRESENCE_PENALTY: rules.presence_penalty,
        Number.FREQUENCY_PENALTY: rules.frequency_penalty,
    }
    integers = {
        Integer.SEED: seed,
        Integer.SAMPLE_INDEX: sample_index,
        Integer.TOP_K: rules.top_k,
        Integer.NUM_EDITS: len(edits),
        Integer.NUM_ALTERNATIVES: num_alternatives,
        Integer.WANTS_TRACE: int(wants_trace),
        Integer.IS_PENALIZED: int(rules.is_penalized),
        Integer.HAS_ALLOWED: int(has_allowed),
    }
    return TableRow([numbers[each] for each in Number], [integers[each] for each in Integer], edits)


def _edits_of(rules: SamplingRules) -> list[Edit]:
    edits = [Edit(token_id, value) for token_id, value in rules.bias.items()]
    edits += [Edit(token_id, -torch.inf) for token_id in rules.always_banned]
    edits += [Edit(token_id, -torch.inf, rules.first_index, rules.first_index + 1) for token_id in rules.first_banned]
    if rules.min_new_tokens > 0:
        edits += [Edit(token_id, -torch.inf, 0, rules.min_new_tokens) for token_id in rules.eos_ids]
    return sorted(edits, key=lambda edit: edit.token_id)


def write_row(
    table: SamplingTable, batch_index: int, row: TableRow, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> None:
    """Begins a sequence in the table, or goes on with one: `token_ids` are those of its answer so far."""
    updates = WordUpdates(table.words)
    update_row(updates, table, batch_index, row, prompt_ids, token_ids)
    updates.send()


def update_row(
    updates: WordUpdates,
    table: SamplingTable,
    batch_index: int,
    row: TableRow,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
) -> None:
    """`write_row` among the updates."""
    newest = (*prompt_ids, *token_ids)[-1]
    updates.write(table.numbers, batch_index, np.array(row.numbers, np.float64))
    updates.write(table.integers, batch_index, np.array(row.integers, np.int64))
    updates.write(table.num_generated, batch_index, np.array([len(token_ids)], np.int32))
    updates.write(table.last_token_ids, batch_index, np.array([newest], np.int64))
    if row.edits:
        updates.write(table.edit_ids, batch_index, np.array([each.token_id for each in row.edits], np.int32))
        updates.write(table.edit_values, batch_index, np.array([each.value for each in row.edits], np.float32))
        for place, ends in enumerate(([each.first for each in row.edits], [each.end for each in row.edits])):
            updates.write(table.edit_ranges, batch_index, np.array(ends, np.int32), place * MAX_EDITS)
    if row.integers[Integer.IS_PENALIZED]:
        table.history[batch_index].zero_()
        updates.write_at(table.history, batch_index, *history_of(prompt_ids, token_ids, table.vocab))


def history_of(
    prompt_ids: Sequence[int], token_ids: Sequence[int], vocab: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Tokens and their words in a row of `SamplingTable.history`; ids beyond the vocabulary are left out."""
    prompt, answer = np.array(prompt_ids, np.int64), np.array(token_ids, np.int64)
    ids, counts = np.unique(answer[answer < vocab], return_counts=True)
    in_prompt = np.unique(prompt[prompt < vocab])
    seen = np.union1d(ids, in_prompt)
    words = np.where(np.isin(seen, in_prompt), IN_PROMPT, 0).astype(np.int32)
    words[np.searchsorted(seen, ids)] += counts.astype(np.int32)
    return seen, words
