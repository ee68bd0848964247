"""Telling that memory has run out, whichever part of torch says it."""

from __future__ import annotations

import torch

#: What torch's CPU allocator and its libraries write; they raise a plain RuntimeError.
CPU_COMPLAINTS = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could have gone through."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(complaint in str(error) for complaint in CPU_COMPLAINTS)
