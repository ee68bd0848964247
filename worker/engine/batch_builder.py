"""Builds a step's tensors from its plan.

Whether a row is attended by a paged kernel or in a tile, and the shape of its tile, depend on the row's own position
alone, so that its result does not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import accumulate, groupby

import torch

from worker.engine.model.attention import PagedAttention
from worker.engine.model.device_copies import to_device
from worker.engine.model.step_batch import (
    MIN_ROWS,
    SCRATCH_BLOCK,
    AttentionTiles,
    InFlightIds,
    PagedRows,
    SequenceRows,
    StateChunk,
    StateRows,
    StepBatch,
)
from worker.engine.scheduling.sequence import Sequence
from worker.engine.scheduling.step_plan import PrefillChunk, SampledRow, StepPlan

#: Blocks at the beginning of a prompt that a kernel for single rows attends faster than tiles do.
SHORT_BLOCKS = 1


class Paging(Enum):
    """The rows that a paged kernel attends."""

    NONE = auto()
    SHORT = auto()  # decoding ones, and of a prompt those with few keys, each by itself
    ALL = auto()

    @classmethod
    def of(cls, paged_attention: PagedAttention | None) -> Paging:
        if paged_attention is None:
            return cls.NONE
        return cls.ALL if paged_attention.covers_prefill else cls.SHORT


def build_step_batch(
    plan: StepPlan,
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
    rows = _Rows(block_size, paging)
    for sequence in sorted(plan.decodes, key=rows.sort_key):
        rows.add_decode(sequence)
    for chunk, is_paged in _paged_first(plan.prefills, paging, block_size):
        rows.add_chunk(chunk, is_paged=is_paged)
    rows.pad(num_rows, num_logits)
    return rows.to_batch(device), rows.sampled


@dataclass(frozen=True)
class _Tile:
    rows: list[int]
    last_keys: list[int]
    block_ids: list[int]


@dataclass(frozen=True)
class _Segment:
    """Rows of one sequence that a paged kernel attends."""

    seqlen_q: int
    seqlen_k: int
    block_ids: list[int]


@dataclass(frozen=True)
class _ChunkRows:
    """Rows of one prompt chunk, in the order of its tokens."""

    rows: list[int]
    begins: bool


class _Rows:
    """The rows of a step while they are added."""

    def __init__(self, block_size: int, paging: Paging) -> None:
        self._block_size = block_size
        self._paging = paging
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._slots: list[int] = []
        self._in_flight: list[tuple[int, int]] = []  # row, index among the tokens in flight
        self._tiles: list[_Tile] = []
        self._segments: list[_Segment] = []
        self._num_decoding = 0  # of the segments; they come first
        self._decoding_states: list[int] = []
        self._chunk_states: dict[int, _ChunkRows] = {}  # by state
        self._logit_rows: list[int] = []
        self.sampled: list[SampledRow] = []

    def sort_key(self, sequence: Sequence) -> list[int]:
        """Brings rows with the same first blocks together: a kernel may share their attention.

        In tiles it brings those with as many blocks together: their queries then need no gathering.
        """
        block_ids = sequence.table.block_ids
        return [len(block_ids)] if self._paging is Paging.NONE else block_ids

    def add_decode(self, sequence: Sequence) -> None:
        position = sequence.num_tokens - 1
        row = self._add(sequence, position, position + 1)
        if sequence.table.state_index is not None:
            self._decoding_states.append(sequence.table.state_index)
        if self._paging is Paging.NONE:
            self._tiles.append(_Tile([row], [position], sequence.table.block_ids))
        else:
            self._segments.append(_Segment(1, position + 1, sequence.table.block_ids))
            self._num_decoding += 1
        self._sample(row, [sequence])

    def add_chunk(self, chunk: PrefillChunk, *, is_paged: bool) -> None:
        first = self._add(chunk.sequence, chunk.start, chunk.end)
        self._add_chunk_rows(chunk, first)
        if is_paged:
            self._segments += _prefill_segments(chunk, self._paging)
        else:
            self._tiles += _prefill_tiles(chunk, first, self._block_size)
        if chunk.is_last:
            self._sample(len(self._ids) - 1, chunk.group.sequences)

    def _add_chunk_rows(self, chunk: PrefillChunk, first: int) -> None:
        """Notes the rows of a recurrent layer's chunk, of which a paged kernel may attend the first."""
        if (state := chunk.sequence.table.state_index) is not None:
            rows = self._chunk_states.setdefault(state, _ChunkRows([], begins=chunk.start == 0))
            rows.rows.extend(range(first, first + chunk.num_tokens))

    def pad(self, num_rows: int, num_logits: int) -> None:
        missing = max(0, num_rows - len(self._ids))
        self._ids += self._ids[:1] * missing
        self._positions += self._positions[:1] * missing
        self._slots += [SCRATCH_BLOCK] * missing
        self._segments += [_Segment(1, 1, [SCRATCH_BLOCK])] * missing if self._segments else []
        # The head's matmul needs several rows too, as every other.
        self._logit_rows += [0] * (num_logits - len(self._logit_rows))

    def to_batch(self, device: torch.device) -> StepBatch:
        return StepBatch(
            input_ids=to_device([self._ids], None, device),
            positions=to_device([self._positions], None, device),
            slot_mapping=to_device(self._slots, None, device),
            logit_rows=to_device(self._logit_rows, torch.long, device),
            tiles=_group_tiles(self._tiles, self._block_size, device),
            paged=_paged_rows(self._segments, self._num_decoding, device) if self._segments else None,
            num_paged_rows=sum(segment.seqlen_q for segment in self._segments),
            in_flight=_in_flight_ids(self._in_flight, device) if self._in_flight else None,
            states=self._state_rows(device),
        )

    def _state_rows(self, device: torch.device) -> StateRows | None:
        if not self._decoding_states and not self._chunk_states:
            return None
        return StateRows(
            num_decoding=len(self._decoding_states),
            decoding=to_device(self._decoding_states, torch.long, device),
            chunks=[
                StateChunk(to_device(chunk.rows, None, device), to_device([state], None, device), chunk.begins)
                for state, chunk in self._chunk_states.items()
            ],
            sequences=self._sequence_rows(device),
        )

    def _sequence_rows(self, device: torch.device) -> SequenceRows:
        num_decoding, chunks = len(self._decoding_states), self._chunk_states.values()
        lengths = [1] * num_decoding + [len(chunk.rows) for chunk in chunks]
        return SequenceRows(
            rows=to_device(
                [*range(num_decoding), *(row for chunk in chunks for row in chunk.rows)], torch.long, device
            ),
            cu_seqlens=to_device([0, *accumulate(lengths)], torch.long, device),
            states=to_device([*self._decoding_states, *self._chunk_states], torch.long, device),
            begins=to_device([False] * num_decoding + [chunk.begins for chunk in chunks], torch.bool, device),
        )

    def _add(self, sequence: Sequence, start: int, end: int) -> int:
        """Appends the tokens `start` … `end` of a sequence; returns the first row."""
        first = len(self._ids)
        if sequence.in_flight_index is not None:
            self._in_flight.append((first, sequence.in_flight_index))
        self._ids += sequence.tokens_between(start, end)
        self._positions += range(start, end)
        block_ids, size = sequence.table.block_ids, self._block_size
        self._slots += [block_ids[p // size] * size + p % size for p in range(start, end)]
        return first

    def _sample(self, row: int, sequences: SequenceOf[Sequence]) -> None:
        self.sampled += [(len(self._logit_rows), sequence) for sequence in sequences]
        self._logit_rows.append(row)


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


def _prefill_segments(chunk: PrefillChunk, paging: Paging) -> list[_Segment]:
    block_ids = chunk.sequence.table.block_ids
    if paging is Paging.ALL:
        return [_Segment(chunk.num_tokens, chunk.end, block_ids)]
    return [_Segment(1, position + 1, block_ids) for position in range(chunk.start, chunk.end)]


def _prefill_tiles(chunk: PrefillChunk, first_row: int, block_size: int) -> list[_Tile]:
    """Tiles of `block_size` queries, aligned to the cache's blocks; the last one is padded."""
    tiles = []
    for start in range(chunk.start, chunk.end, block_size):
        end = min(start + block_size, chunk.end)
        rows = [first_row + position - chunk.start for position in range(start, end)]
        tiles.append(
            _Tile(
                rows + [rows[-1]] * (block_size - len(rows)),
                list(range(start, start + block_size)),
                chunk.sequence.table.block_ids[: start // block_size + 1],
            )
        )
    return tiles


def _in_flight_ids(in_flight: list[tuple[int, int]], device: torch.device) -> InFlightIds:
    rows, indices = zip(*in_flight, strict=True)
    return InFlightIds(to_device(list(rows), None, device), to_device(list(indices), None, device))


def _paged_rows(segments: list[_Segment], num_decoding: int, device: torch.device) -> PagedRows:
    width = max(len(segment.block_ids) for segment in segments)
    table = [segment.block_ids + [SCRATCH_BLOCK] * (width - len(segment.block_ids)) for segment in segments]
    return PagedRows(
        block_table=to_device(table, torch.int32, device),
        seqused_k=to_device([segment.seqlen_k for segment in segments], torch.int32, device),
        cu_seqlens_q=to_device([0, *accumulate(segment.seqlen_q for segment in segments)], torch.int32, device),
        max_seqlen_q=max(segment.seqlen_q for segment in segments),
        max_seqlen_k=max(segment.seqlen_k for segment in segments),
        num_decoding=num_decoding,
    )


def _group_tiles(tiles: list[_Tile], block_size: int, device: torch.device) -> list[AttentionTiles]:
    """Tiles of one shape together, those with the fewest keys first."""

    def shape(tile: _Tile) -> tuple[int, int]:
        return len(tile.rows), len(tile.block_ids)

    return [_stacked(list(members), block_size, device) for _, members in groupby(sorted(tiles, key=shape), key=shape)]


def _stacked(tiles: list[_Tile], block_size: int, device: torch.device) -> AttentionTiles:
    rows = [row for tile in tiles for row in tile.rows]
    kept = [index for index, row in enumerate(rows) if index == 0 or row != rows[index - 1]]
    return AttentionTiles(
        rows=to_device([tile.rows for tile in tiles], None, device),
        kept=to_device(kept, None, device) if len(kept) < len(rows) else None,
        kept_rows=to_device([rows[index] for index in kept], None, device),
        block_ids=to_device([block for tile in tiles for block in tile.block_ids], None, device),
        keys_per_tile=len(tiles[0].block_ids) * block_size,
        last_keys=to_device([tile.last_keys for tile in tiles], None, device),
        is_contiguous=len(tiles[0].rows) == 1 and rows == list(range(rows[0], rows[0] + len(rows))),
        first_row=rows[0],
    )
