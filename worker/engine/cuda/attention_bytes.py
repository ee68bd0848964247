"""The bytes that the attention kernels load and store, program by program; a roofline is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worker.engine.cuda.triton_attention import (
    MIN_TILE_ROWS,
    PROMPT_TILE_ROWS,
    SECTION,
    TileShape,
    num_programs_of_a_row,
)
from worker.engine.model.attention import AttentionLayer
from worker.engine.model.kv_cache import LayerShape

INT32 = 4
FP32 = 4


@dataclass(frozen=True)
class AttentionBytes:
    """The bytes of one layer's attention on a GPU of `num_processors`."""

    layer: AttentionLayer
    shape: LayerShape
    num_heads: int
    itemsize: int
    num_processors: int

    def of(self, segments: Sequence[tuple[int, int]], max_seqlen_k: int) -> int:
        """The bytes of a step's sequences, (rows, keys) each; `max_seqlen_k` is the step's longest, or its graph's."""
        decoding = [keys for rows, keys in segments if rows == 1]
        prompts = [(rows, keys) for rows, keys in segments if rows > 1]
        most_rows = max((rows for rows, _ in prompts), default=0)
        of_head = sum(self._decode(decoding, max_seqlen_k))
        of_head += sum(self._prompt(rows, keys, most_rows) for rows, keys in prompts)
        return self.shape.num_kv_heads * of_head

    def num_launches(self, segments: Sequence[tuple[int, int]], max_seqlen_k: int) -> int:
        decoding = sum(rows == 1 for rows, _ in segments)
        of_decoding = 0 if not decoding else 1 if self._num_programs(decoding, max_seqlen_k) == 1 else 2
        return of_decoding + (decoding < len(segments))

    def _num_programs(self, num_decoding: int, max_seqlen_k: int) -> int:
        num_row_heads = num_decoding * self.shape.num_kv_heads
        return num_programs_of_a_row(num_row_heads, max_seqlen_k, self._tile(MIN_TILE_ROWS), self.num_processors)

    @property
    def _group(self) -> int:
        return self.num_heads // self.shape.num_kv_heads

    @property
    def _per_key(self) -> int:
        return INT32 + (self.shape.key_dim + self.shape.value_dim) * self.itemsize

    def _of_rows(self, num_rows: int) -> int:
        """A store of outputs, and a load of each head's sink."""
        sinks = 0 if self.layer.sinks is None else 1
        return num_rows * self._group * (self.shape.value_dim + sinks) * self.itemsize

    def _query(self, num_rows: int) -> int:
        return num_rows * self._group * self.shape.key_dim * self.itemsize

    def _first(self, position: int) -> int:
        """The section's first key, for the first of a tile's rows."""
        window, chunk = self.layer.window, self.layer.chunk
        first = 0 if window is None else max(position - window + 1, 0)
        if chunk is not None:
            first = max(first, position // chunk * chunk)
        return first // SECTION * SECTION

    def _tile(self, wanted_rows: int) -> TileShape:
        return TileShape.of(self.shape.key_dim, self.shape.value_dim, self.itemsize, self._group, wanted_rows)

    def _decode(self, decoding: Sequence[int], max_seqlen_k: int) -> Iterator[int]:
        tile = self._tile(MIN_TILE_ROWS)
        num_programs = self._num_programs(len(decoding), max_seqlen_k)
        for keys in decoding:
            loaded = (keys - self._first(keys - 1)) * self._per_key
            if num_programs == 1:
                yield 3 * INT32 + self._query(1) + loaded + self._of_rows(1)
                continue
            num_sections = -(-keys // SECTION) - self._first(keys - 1) // SECTION
            partial = 2 * num_sections * tile.rows * (2 + tile.value_dim) * FP32
            yield num_programs * (INT32 + self._query(1)) + loaded + partial + INT32 + self._of_rows(1)

    def _prompt(self, num_rows: int, keys: int, most_rows: int) -> int:
        tile = self._tile(PROMPT_TILE_ROWS)
        rows_per_tile = tile.rows // self._group
        total = -(-most_rows // rows_per_tile) * 2 * INT32
        for first_row in range(0, num_rows, rows_per_tile):
            position = keys - num_rows + first_row
            end = min(keys, position + rows_per_tile)
            loaded = min(-(-end // tile.keys) * tile.keys, keys) - self._first(position)
            rows = min(rows_per_tile, num_rows - first_row)
            total += INT32 + self._query(rows) + loaded * self._per_key + self._of_rows(rows)
        return total
