"""The index tensors of one step: where each row's keys go, and which keys each row attends to.

Rows that a paged kernel attends are described by their block tables. All others are attended in tiles of a fixed
shape: a decoding row against its own keys padded to whole blocks, a prompt in tiles of `block_size` queries
against the blocks up to and including its own. Which it is, and the shape of a row's tile, depend on its own position
alone, so the result does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum, auto
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

from worker.engine.model.device_copies import send, to_device
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import PrefillChunk, SampledRow

#: KV block that belongs to no sequence; padding rows write there.
SCRATCH_BLOCK = 0

#: A single row takes another path through the products than several do, and may differ in the last bit.
MIN_ROWS = 2

#: Blocks at the beginning of a prompt that a kernel which takes one row at a time attends faster than tiles do.
SHORT_BLOCKS = 1


@dataclass(frozen=True)
class AttentionTiles:
    """Tiles with the same number of keys, for one attention call."""

    rows: Tensor  # [num_tiles, queries] rows of the step; padding repeats a row
    kept: Tensor | None  # which of the flattened queries are no padding; None where all are kept
    kept_rows: Tensor  # the rows of those
    block_ids: Tensor  # [num_tiles * blocks]
    num_keys: int
    last_keys: Tensor  # [num_tiles, queries] position of the last key each query sees
    is_contiguous: bool  # rows are first_row, first_row + 1, …: no gathering needed
    first_row: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_masks", {})

    def mask(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [num_tiles, 1, group * queries, num_keys]; made once a step for each window and group."""
        masks: dict[tuple[int | None, int], Tensor] = self._masks  # type: ignore[attr-defined]
        if (window, group) not in masks:
            keys = torch.arange(self.num_keys, device=self.last_keys.device)
            hidden = keys > self.last_keys[..., None]
            if window is not None:
                hidden |= keys <= self.last_keys[..., None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            masks[window, group] = mask[:, None].repeat(1, 1, group, 1)
        return masks[window, group]


@dataclass(frozen=True)
class PendingIds:
    """Rows whose input ids are choices that are still on the device."""

    rows: Tensor  # [pending]
    places: Tensor  # [pending] among the choices


@dataclass(frozen=True)
class PagedRows:
    """The first rows of a step, whose keys a kernel finds by itself; int32, one entry for each run of rows."""

    block_table: Tensor  # [runs, max_blocks]; filled up with the scratch block
    num_keys: Tensor  # [runs] keys in the cache, the newest row's own included
    first_rows: Tensor  # [runs + 1] where each run of rows begins, and where the last ends
    max_queries: int  # rows of the longest run
    max_keys: int


class Paging(Enum):
    """Which rows a paged kernel attends."""

    NONE = auto()
    SHORT = auto()  # decoding ones, and of a prompt those with few keys, each by itself
    ALL = auto()


@dataclass(frozen=True)
class StepBatch:
    """Everything a forward pass needs beside the weights and the cache."""

    input_ids: Tensor  # [1, rows]
    positions: Tensor  # [1, rows]
    slots: Tensor  # [rows] place of each row's key in the cache
    logit_rows: Tensor  # [num_logits] rows whose logits are wanted, and others up to MIN_ROWS
    tiles: list[AttentionTiles]
    paged: PagedRows | None
    num_paged_rows: int  # they are the first
    pending: PendingIds | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_copies", {self.input_ids.device: self})

    def on(self, device: torch.device) -> StepBatch:
        """The same on another device, for a model that is spread over several; copied once."""
        copies: dict[torch.device, StepBatch] = self._copies  # type: ignore[attr-defined]
        if device not in copies:
            copies[device] = _moved(self, device)
        return copies[device]


def insert_ids(input_ids: Tensor, pending: PendingIds | None, chosen_ids: Tensor | None) -> None:
    """Writes choices [choices] that the host does not know yet into input ids [1, rows]."""
    if pending is None:
        return
    assert chosen_ids is not None, "a row waits for a choice, and there is none"
    # Of a model on several devices the choices are on the last one, the ids on the first.
    found = chosen_ids[send(pending.places, chosen_ids.device)].to(input_ids.device)
    input_ids[0].index_copy_(0, send(pending.rows, input_ids.device), found)


def _moved(value: Any, device: torch.device) -> Any:
    """A dataclass with all tensors inside it on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(each, device) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _moved(getattr(value, each.name), device) for each in fields(value)})
    return value


@dataclass
class _Rows:
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    pending: list[tuple[int, int]] = field(default_factory=list)  # row, place among the pending choices

    def add(self, sequence: Sequence, start: int, end: int, block_size: int) -> int:
        """Appends the tokens `start` … `end` of a sequence; returns the first row."""
        first = len(self.ids)
        if sequence.in_flight_index is not None:
            self.pending.append((first, sequence.in_flight_index))
        self.ids += sequence.tokens_between(start, end)
        self.positions += range(start, end)
        blocks = sequence.table.block_ids
        self.slots += [blocks[p // block_size] * block_size + p % block_size for p in range(start, end)]
        return first


@dataclass(frozen=True)
class _Tile:
    rows: list[int]
    last_keys: list[int]
    block_ids: list[int]


@dataclass(frozen=True)
class _Run:
    """Rows of one sequence that a paged kernel attends."""

    num_rows: int
    num_keys: int
    block_ids: list[int]


def build_step_batch(
    decodes: SequenceOf[Sequence],
    prefills: SequenceOf[PrefillChunk],
    block_size: int,
    device: torch.device,
    paging: Paging = Paging.NONE,
    *,
    num_rows: int = MIN_ROWS,
    num_logits: int = MIN_ROWS,
) -> tuple[StepBatch, list[SampledRow]]:
    """The step's tensors, and which sequences get a token from which row of its logits.

    Padded to at least `num_rows` rows and `num_logits` logits.
    """
    rows, tiles, runs = _Rows(), [], []
    logit_rows: list[int] = []
    sampled: list[SampledRow] = []
    for sequence in sorted(decodes, key=lambda s: _place(s, paging)):
        position = sequence.num_tokens - 1
        row = rows.add(sequence, position, position + 1, block_size)
        if paging is Paging.NONE:
            tiles.append(_Tile([row], [position], sequence.table.block_ids))
        else:
            runs.append(_Run(1, position + 1, sequence.table.block_ids))
        sampled.append((len(logit_rows), sequence))
        logit_rows.append(row)
    for chunk, is_paged in _paged_first(prefills, paging, block_size):
        first = rows.add(chunk.sequence, chunk.start, chunk.end, block_size)
        if is_paged:
            runs += _prefill_runs(chunk, paging)
        else:
            tiles += _prefill_tiles(chunk, first, block_size)
        if chunk.is_last:
            sampled += [(len(logit_rows), sequence) for sequence in chunk.group.sequences]
            logit_rows.append(len(rows.ids) - 1)
    while len(rows.ids) < num_rows:
        rows.ids.append(rows.ids[0])
        rows.positions.append(rows.positions[0])
        rows.slots.append(SCRATCH_BLOCK)
        runs += [_Run(1, 1, [SCRATCH_BLOCK])] * bool(runs)
    # The model's last product needs several rows too, as every other.
    logit_rows += [0] * (num_logits - len(logit_rows))
    batch = StepBatch(
        input_ids=to_device([rows.ids], None, device),
        positions=to_device([rows.positions], None, device),
        slots=to_device(rows.slots, None, device),
        logit_rows=to_device(logit_rows, torch.long, device),
        tiles=_group_tiles(tiles, block_size, device),
        paged=_paged_rows(runs, device) if runs else None,
        num_paged_rows=sum(run.num_rows for run in runs),
        pending=_pending_ids(rows.pending, device) if rows.pending else None,
    )
    return batch, sampled


def _place(sequence: Sequence, paging: Paging) -> list[int]:
    """Sorts rows so that those with the same first blocks stand together, whose attention a kernel may share.

    In tiles those with as many blocks do: their queries need no gathering then.
    """
    blocks = sequence.table.block_ids
    return [len(blocks)] if paging is Paging.NONE else blocks


def _pending_ids(pending: list[tuple[int, int]], device: torch.device) -> PendingIds:
    return PendingIds(*(to_device(list(column), None, device) for column in zip(*pending, strict=True)))


def _paged_rows(runs: list[_Run], device: torch.device) -> PagedRows:
    width = max(len(run.block_ids) for run in runs)
    table = [run.block_ids + [SCRATCH_BLOCK] * (width - len(run.block_ids)) for run in runs]
    first_rows = [0, *accumulate(run.num_rows for run in runs)]
    num_keys = [run.num_keys for run in runs]
    return PagedRows(
        block_table=to_device(table, torch.int32, device),
        num_keys=to_device(num_keys, torch.int32, device),
        first_rows=to_device(first_rows, torch.int32, device),
        max_queries=max(run.num_rows for run in runs),
        max_keys=max(num_keys),
    )


def _paged_first(
    prefills: SequenceOf[PrefillChunk], paging: Paging, block_size: int
) -> list[tuple[PrefillChunk, bool]]:
    """The parts of the chunks that a paged kernel attends, then the others; and whether it does."""
    num_paged = {Paging.NONE: 0, Paging.SHORT: SHORT_BLOCKS * block_size}  # of a prompt's tokens
    paged, others = [], []
    for chunk in prefills:
        border = max(chunk.start, min(chunk.end, num_paged.get(paging, chunk.end)))
        if border > chunk.start:
            paged.append((replace(chunk, end=border), True))
        if border < chunk.end:
            others.append((replace(chunk, start=border), False))
    return paged + others


def _prefill_runs(chunk: PrefillChunk, paging: Paging) -> list[_Run]:
    block_ids = chunk.sequence.table.block_ids
    if paging is Paging.ALL:
        return [_Run(chunk.end - chunk.start, chunk.end, block_ids)]
    return [_Run(1, position + 1, block_ids) for position in range(chunk.start, chunk.end)]


def _prefill_tiles(chunk: PrefillChunk, first_row: int, block_size: int) -> list[_Tile]:
    """Tiles of `block_size` queries, aligned to the cache's blocks; the last one is padded."""
    tiles = []
    for start in range(chunk.start, chunk.end, block_size):
        end = min(start + block_size, chunk.end)
        rows = [first_row + position - chunk.start for position in range(start, end)]
        padding = block_size - len(rows)
        tiles.append(
            _Tile(
                rows + [rows[-1]] * padding,
                list(range(start, start + block_size)),
                chunk.sequence.table.block_ids[: start // block_size + 1],
            )
        )
    return tiles


def _group_tiles(tiles: list[_Tile], block_size: int, device: torch.device) -> list[AttentionTiles]:
    grouped = []
    tiles = sorted(tiles, key=lambda tile: (len(tile.rows), len(tile.block_ids)))
    for (queries, num_blocks), members_iterator in groupby(tiles, key=lambda t: (len(t.rows), len(t.block_ids))):
        members = list(members_iterator)
        rows = to_device([tile.rows for tile in members], None, device)
        flat = [row for tile in members for row in tile.rows]
        kept = [place for place, row in enumerate(flat) if place == 0 or row != flat[place - 1]]
        grouped.append(
            AttentionTiles(
                rows=rows,
                kept=to_device(kept, None, device) if len(kept) < len(flat) else None,
                kept_rows=to_device([flat[place] for place in kept], None, device),
                block_ids=to_device([block for tile in members for block in tile.block_ids], None, device),
                num_keys=num_blocks * block_size,
                last_keys=to_device([tile.last_keys for tile in members], None, device),
                is_contiguous=queries == 1 and flat == list(range(flat[0], flat[0] + len(flat))),
                first_row=flat[0],
            )
        )
    return grouped
