"""Recognizes the errors by which torch and its libraries report that memory has run out."""

from __future__ import annotations

import torch

#: Parts of the messages of torch's CPU allocator and its libraries, which raise a plain RuntimeError.
CPU_MESSAGES = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could have gone through."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)
