"""Tensors of several dtypes in one storage of 32-bit words: the host writes to all of them by one copy, one launch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine.model.device_copies import send

WORD = 4

#: Words that a field begins at multiples of: 16 bytes, at which kernels load fastest.
ALIGNMENT = 4


@dataclass(frozen=True)
class Field:
    """A tensor of zeros, with a row for each sequence."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def carve(fields: dict[str, Field], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """The words int32 [words] of all fields, and each field as a view of its part."""
    sizes = {name: math.prod(field.shape) * field.dtype.itemsize // WORD for name, field in fields.items()}
    starts = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values()), initial=0)
    *first_words, end = starts
    words = torch.zeros(end, dtype=torch.int32, device=device)
    views = {
        name: words[start : start + sizes[name]].view(field.dtype).view(field.shape)
        for (name, field), start in zip(fields.items(), first_words, strict=True)
    }
    return words, views


class WordUpdates:
    """Values that the host has written, until `send` brings them to the device. No place is written twice between."""

    def __init__(self, words: Tensor) -> None:
        self._words = words
        self._indices: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.int32]] = []

    def write(self, field: Tensor, row: int, values: NDArray[Any], start: int = 0) -> None:
        """Writes values [n] of the field's dtype into a row, as if it were flat, from the element `start` on."""
        words = values.view(np.int32)
        first = (field.storage_offset() + row * field.stride(0) + start) * field.itemsize // WORD
        self._indices.append(np.arange(first, first + len(words)))
        self._values.append(words)

    def write_at(self, field: Tensor, row: int, places: NDArray[np.int64], values: NDArray[np.int32]) -> None:
        """Writes words into places of a row of a 32-bit field."""
        self._indices.append(int(field.storage_offset() + row * field.stride(0)) + places)
        self._values.append(values)

    def write_rows(self, field: Tensor, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        """Writes a value into each of some rows of a field that has one value a row."""
        words = values.view(np.int32).reshape(len(values), -1)
        first = (int(field.storage_offset()) + rows) * (field.itemsize // WORD)
        self._indices.append((first[:, None] + np.arange(words.shape[1])).ravel())
        self._values.append(words.ravel())

    def send(self) -> None:
        """Brings the values to the device, by one copy and one launch; by neither where nothing was written."""
        if not self._indices:
            return
        indices, values = np.concatenate(self._indices), np.concatenate(self._values)
        self._indices, self._values = [], []
        count = len(indices)
        packed = np.zeros(count + (count + 1) // 2, np.int64)
        packed[:count] = indices
        packed[count:].view(np.int32)[:count] = values
        sent = send(torch.from_numpy(packed), self._words.device)
        self._words.index_copy_(0, sent[:count], sent[count:].view(torch.int32)[:count])
