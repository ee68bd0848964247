"""Recognizes the errors of a device, such as memory that has run out, among those of requests."""

from __future__ import annotations

import torch

#: Parts of the messages of torch's CPU allocator and its libraries, which raise a plain RuntimeError.
CPU_MESSAGES = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could have gone through."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in CPU_MESSAGES)


def is_device_error(error: BaseException) -> bool:
    """Whether the error is not a request's: memory ran out, or the device is lost to this process."""
    return isinstance(error, torch.AcceleratorError) or "CUDA" in str(error) or is_out_of_memory(error)
