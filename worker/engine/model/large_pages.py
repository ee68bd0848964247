"""Memory in transparent huge pages, for tensors that every step reads from end to end.

One pass over 4 GB of weights takes a million address translations with pages of 4 KiB, and two thousand with 2 MiB.
Measured in `docs/log.md`.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

CHUNK_BYTES = 2**27
PAGE_BYTES = 2**21
LINE_BYTES = 64


def large_pages(num_bytes: int) -> Tensor:
    """Zeroed bytes [num_bytes], aligned to a page; the system provides them when they are first touched."""
    pages = mmap.mmap(-1, num_bytes + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages: small ones work too, more slowly
            pages.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(pages, dtype=torch.uint8)
    return found[-found.data_ptr() % PAGE_BYTES :][:num_bytes]


class LargePages:
    """Allocates tensors side by side, so that small ones share a page."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: Tensor) -> Tensor:
        """A copy of a contiguous tensor, aligned to a cache line."""
        size = tensor.numel() * tensor.itemsize
        if size > len(self._left):
            self._left = large_pages(max(CHUNK_BYTES, size))
        kept = self._left[:size].view(tensor.dtype).view(tensor.shape)
        self._left = self._left[size + -size % LINE_BYTES :]
        return kept.copy_(tensor)
