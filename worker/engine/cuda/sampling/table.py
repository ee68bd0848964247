"""The device's block of sampling parameters: tensors with a row for each running sequence, its `batch_index`.

The host writes a row when its sequence begins, `SampledRules` packed, and never again: position, newest token and
history go on by the sampler itself. Batch index 0 may stand for padding: an empty row is greedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

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

    @classmethod
    def make(cls, max_num_seqs: int, vocab: int, device: torch.device) -> SamplingTable:
        """A table of empty rows: greedy ones without a trace."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(max_num_seqs, *shape, dtype=dtype, device=device)

        return cls(
            numbers=zeros(len(Number), dtype=torch.float64),
            integers=zeros(len(Integer), dtype=torch.int64),
            num_generated=zeros(),
            last_token_ids=zeros(dtype=torch.int64),
            edit_ids=zeros(MAX_EDITS),
            edit_values=zeros(MAX_EDITS, dtype=torch.float32),
            edit_ranges=zeros(2, MAX_EDITS),
            history=zeros(vocab),
            allowed=zeros(-(-vocab // 32)),
        )

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
    device = table.numbers.device
    table.numbers[batch_index] = torch.tensor(row.numbers, dtype=torch.float64, device=device)
    table.integers[batch_index] = torch.tensor(row.integers, dtype=torch.int64, device=device)
    table.num_generated[batch_index] = len(token_ids)
    table.last_token_ids[batch_index] = (*prompt_ids, *token_ids)[-1]
    count = len(row.edits)
    table.edit_ids[batch_index, :count] = torch.tensor([each.token_id for each in row.edits], dtype=torch.int32)
    table.edit_values[batch_index, :count] = torch.tensor([each.value for each in row.edits])
    ranges = [[each.first for each in row.edits], [each.end for each in row.edits]]
    table.edit_ranges[batch_index, :, :count] = torch.tensor(ranges, dtype=torch.int32)
    if row.integers[Integer.IS_PENALIZED]:
        table.history[batch_index] = history_of(prompt_ids, token_ids, table.vocab).to(device)


def history_of(prompt_ids: Sequence[int], token_ids: Sequence[int], vocab: int) -> Tensor:
    """A row of `SamplingTable.history` on the host; ids beyond the vocabulary are left out."""
    history = torch.zeros(vocab, dtype=torch.int32)
    history[[token_id for token_id in prompt_ids if token_id < vocab]] = IN_PROMPT
    known = torch.tensor([token_id for token_id in token_ids if token_id < vocab], dtype=torch.int64)
    return history.index_add_(0, known, torch.ones_like(known, dtype=torch.int32))
