"""The pages of a Parquet file before they are decompressed: sizes by their own headers, which decoding goes by.

The footer of a file may say anything; a page's header says to how many bytes it unfolds, and a decoder allocates those.
Reads Thrift's compact protocol as far as a page header needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

BOOLEANS, BYTE, VARINTS, DOUBLE, BINARY, LISTS, MAP, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 11, 12

MAX_HEADER_BYTES = 2**24
MAX_DEPTH = 16


class DamagedPage(ValueError):
    """There is no page header where one must be."""


@dataclass(frozen=True)
class Page:
    """A page by its header."""

    column: str
    num_bytes: int  # uncompressed
    num_values: int


def pages(file: IO[bytes], metadata: Any, columns: frozenset[str]) -> Iterator[Page]:
    """Every page of the columns. Raises `DamagedPage`."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if any(name in columns for name in column_names(chunk.path_in_schema)):
                yield from _chunk_pages(file, chunk)


def column_names(path: str) -> Iterator[str]:
    """The names that the column of a path may have: `a.b` is a part of `a`, or a column of that name."""
    parts = path.split(".")
    return (".".join(parts[:number]) for number in range(len(parts), 0, -1))


def _chunk_pages(file: IO[bytes], chunk: Any) -> Iterator[Page]:
    if chunk.num_values == 0:  # its pages may be left out
        return
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        position = min(position, chunk.dictionary_page_offset)
    end = position + chunk.total_compressed_size
    while position < end:
        header, length = _header_at(file, position, end)
        num_bytes, num_stored = header.get(2), header.get(3)
        if not isinstance(num_bytes, int) or not isinstance(num_stored, int) or min(num_bytes, num_stored) < 0:
            raise DamagedPage
        kinds = (header.get(field) for field in (5, 7, 8))  # a data page, a dictionary, a data page of version 2
        num_values = next((kind[1] for kind in kinds if isinstance(kind, dict) and isinstance(kind.get(1), int)), 0)
        yield Page(chunk.path_in_schema, num_bytes, num_values)
        position += length + num_stored


def _header_at(file: IO[bytes], position: int, end: int) -> tuple[dict[int, Any], int]:
    """The header's fields by their numbers, and its length."""
    size = 2**12
    while True:
        file.seek(position)
        data = file.read(min(size, end - position))
        compact = _Compact(data)
        try:
            return compact.struct(), compact.position
        except IndexError as error:
            if len(data) < size or size >= MAX_HEADER_BYTES:
                raise DamagedPage from error
            size *= 16


class _Compact:
    """Values of Thrift's compact protocol in some bytes; the end of these is an IndexError."""

    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise DamagedPage
        if kind in BOOLEANS:
            return kind == BOOLEANS[0]
        if kind in VARINTS:
            return self._integer()
        if kind in (BYTE, DOUBLE, BINARY):
            self._skip(1 if kind == BYTE else 8 if kind == DOUBLE else self._varint())
            return None
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in LISTS:
            return self._list(depth)
        raise DamagedPage

    def _list(self, depth: int) -> None:
        head = self._byte()
        for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
            self._skip(1) if head & 15 in BOOLEANS else self._value(head & 15, depth + 1)

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise DamagedPage

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, num_bytes: int) -> None:
        self.position += num_bytes
        if self.position > len(self._data):
            raise IndexError
