"""The process's memory: keeping what was freed, and telling that it has run out, whichever part of torch says it."""

from __future__ import annotations

import ctypes
import sys

import torch

#: glibc's names for what `mallopt` sets (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Larger blocks are returned all the same: among small ones they would leave holes that nothing fits into.
KEPT_BLOCK_BYTES = 2**25
KEPT_BYTES = 2**30

#: What torch's CPU allocator and its libraries write; they raise a plain RuntimeError.
CPU_COMPLAINTS = ("not enough memory", "can't allocate memory", "could not create a memory object", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch could have gone through."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(complaint in str(error) for complaint in CPU_COMPLAINTS)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it: a step's large temporaries come again at the next.

    Handing them back and getting them anew costs a page fault for every 4 KiB, in every step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
