"""Recognizes the errors of a device, such as memory that has run out, among those of requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worker.engine.request import OutOfMemory

#: Parts of the messages of torch's CPU allocator and its libraries, which raise a plain RuntimeError.
CPU_MESSAGES = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")

#: Parts of the messages of CUDA and its libraries, which raise an AcceleratorError or a plain RuntimeError.
CUDA_MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could have gone through."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in (*CPU_MESSAGES, *CUDA_MESSAGES))


def is_device_error(error: BaseException) -> bool:
    """Whether the error is not a request's: memory ran out, or the device is lost to this process."""
    return isinstance(error, torch.AcceleratorError) or "CUDA" in str(error) or is_out_of_memory(error)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Raises `OutOfMemory` where memory runs out and no smaller batch can help; it says for what."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"memory ran out for {what}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return str(error).partition("\n")[0] or type(error).__name__
