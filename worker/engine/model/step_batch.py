"""The index tensors of one step: where each row's keys go, and which keys each row attends to.

Plain data; `batch_builder` makes it. Rows that a paged kernel attends to come first and have block tables. All others
are attended in tiles of fixed shapes: a decoding row against its own keys padded to whole blocks, a prompt in tiles
of one block of queries against the blocks up to and including their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worker.engine.model.device_copies import send

#: KV block that belongs to no sequence; padding rows write there.
SCRATCH_BLOCK = 0

#: The fewest rows of a matmul: a single row takes another path through it and may differ in the last bit.
MIN_ROWS = 2


@dataclass(frozen=True)
class AttentionTiles:
    """Tiles with the same number of keys, for one attention call."""

    rows: Tensor  # [num_tiles, queries] rows of the step; padding repeats a row
    kept: Tensor | None  # the flattened queries that are not padding; None where all are kept
    kept_rows: Tensor  # their rows
    block_ids: Tensor  # [num_tiles * blocks]
    keys_per_tile: int
    last_keys: Tensor  # [num_tiles, queries] position of the last key each query sees
    is_contiguous: bool  # rows are first_row, first_row + 1, …: no gathering needed
    first_row: int
    _masks: dict[tuple[int | None, int | None, int], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def mask(self, window: int | None, chunk: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [num_tiles, 1, group * queries, keys_per_tile]; made once for each window, chunk and group."""
        if (window, chunk, group) not in self._masks:
            keys = torch.arange(self.keys_per_tile, device=self.last_keys.device)
            hidden = keys > self.last_keys[..., None]
            if window is not None:
                hidden |= keys <= self.last_keys[..., None] - window
            if chunk is not None:
                hidden |= keys // chunk < self.last_keys[..., None] // chunk
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._masks[window, chunk, group] = mask[:, None].repeat(1, 1, group, 1)
        return self._masks[window, chunk, group]


@dataclass(frozen=True)
class InFlightIds:
    """Rows whose input ids are tokens that are still on the device."""

    rows: Tensor  # [ids]
    indices: Tensor  # [ids] among the tokens in flight

    def insert(self, input_ids: Tensor, ids_in_flight: Tensor | None) -> None:
        """Writes tokens in flight [tokens] into input ids [1, rows]."""
        assert ids_in_flight is not None, "a row waits for a token in flight, and there is none"
        # In a model on several devices the tokens are on the last one, the input ids on the first.
        found = ids_in_flight[send(self.indices, ids_in_flight.device)].to(input_ids.device)
        input_ids[0].index_copy_(0, send(self.rows, input_ids.device), found)


@dataclass(frozen=True)
class PagedRows:
    """The first rows of a step, whose keys a kernel finds through block tables; int32, an entry per run of rows.

    The names are flash attention's.
    """

    block_table: Tensor  # [runs, max_blocks]; filled up with the scratch block
    seqused_k: Tensor  # [runs] keys in the cache, the newest row's own included
    cu_seqlens_q: Tensor  # [runs + 1] where each run of rows begins, and where the last ends
    max_seqlen_q: int  # rows of the longest run
    max_seqlen_k: int
    num_decoding: int  # of the runs: they come first, and have one row each


@dataclass(frozen=True)
class StateChunk:
    """A prompt chunk whose rows go through a recurrent layer in order."""

    rows: Tensor  # [tokens]
    state: Tensor  # [1] the sequence's state index
    begins: bool  # at the prompt's first token, where the state is empty


@dataclass(frozen=True)
class SequenceRows:
    """The decoding rows and prompt chunks of a step, one after another, for a kernel."""

    rows: Tensor  # [tokens] int64
    cu_seqlens: Tensor  # [sequences + 1] int64: where each sequence's tokens begin in `rows`, and where the last's end
    states: Tensor  # [sequences] int64
    begins: Tensor  # [sequences] bool: at the prompt's first token, where the state is empty


@dataclass(frozen=True)
class StateRows:
    """The rows of a step by the recurrent state that they read and write. Padding rows have none."""

    num_decoding: int  # of the rows; they come first
    decoding: Tensor  # [num_decoding] their state indices
    chunks: list[StateChunk]
    sequences: SequenceRows  # the same


@dataclass(frozen=True)
class StepBatch:
    """Everything a forward pass needs beside the weights and the cache."""

    input_ids: Tensor  # [1, rows]
    positions: Tensor  # [1, rows]
    slot_mapping: Tensor  # [rows] slot of the cache where each row's key goes
    logit_rows: Tensor  # [num_logits] rows whose logits are wanted, then padding
    tiles: list[AttentionTiles]
    paged: PagedRows | None
    num_paged_rows: int  # they come first
    in_flight: InFlightIds | None = None
    states: StateRows | None = None  # only of models that keep recurrent states
    _copies: dict[torch.device, StepBatch] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_rows(self) -> int:
        return self.input_ids.shape[1]

    def on(self, device: torch.device) -> StepBatch:
        """The same batch on another device, for a model that is spread over several; copied once."""
        if device == self.input_ids.device:
            return self
        if device not in self._copies:
            self._copies[device] = _moved(self, device)
        return self._copies[device]


def _moved(value: Any, device: torch.device) -> Any:
    """A dataclass with all tensors inside it on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        named = [each.name for each in fields(value) if each.init]
        return replace(value, **{name: _moved(getattr(value, name), device) for name in named})
    return value
